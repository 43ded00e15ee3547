// The little of Node that the tour uses, so that no package has to be there. A project has `@types/node` instead.

declare const process: { argv: string[]; env: Record<string, string | undefined> };

declare module "node:crypto" {
    export function randomUUID(): string;
}
