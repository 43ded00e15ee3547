//! What the tests share: builders for histories, throwaway stores, a simulated clock.
