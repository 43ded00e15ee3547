//! Many processes on one file: nobody sees an error, nothing acknowledged is lost, nobody is reaped who beats.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lastbeat_acceptance::{Numbers, Place, Started, extent, helper, pause};
use rustix::process::Signal;
use serde_json::Value;

/// `LASTBEAT_CROWD_SECONDS` makes it longer.
#[test]
fn ten_exec_loops_and_sweepers_that_come_and_go_share_a_file() {
    let place = Place::default();
    place.json(&["lane", "set", "crowd", "--heartbeat-interval", "500ms", "--heartbeat-window", "4s"]);
    let end = Instant::now() + Duration::from_secs(extent("LASTBEAT_CROWD_SECONDS", 8));
    let sweep = || Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let sweepers = [sweep(), sweep()];
    std::thread::scope(|scope| {
        let exec_loop = |worker: usize| {
            let place = &place;
            move || {
                let mut runs = 0;
                while Instant::now() < end {
                    let naps = ["0", "0.3", "1.2"][(worker + runs) % 3];
                    let output = place.run(&["exec", "--lane", "crowd", "--executor", "loop", "--", "sleep", naps]);
                    let said = String::from_utf8(output.stderr).unwrap();
                    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
                    runs += 1;
                }
                runs
            }
        };
        let loops: Vec<_> = (0..10).map(|worker| scope.spawn(exec_loop(worker))).collect();
        let mut numbers = Numbers(1);
        while Instant::now() < end {
            // The third one is started and killed all the time.
            let third = sweep();
            pause(Duration::from_millis(50 + numbers.below(400)));
            third.signal(Signal::KILL);
        }
        let runs: usize = loops.into_iter().map(|worker| worker.join().unwrap()).sum();
        let counts = place.json(&["lane", "show", "crowd"])["runs"].clone();
        assert_eq!(counts, serde_json::json!({"completed": runs}), "nobody was reaped");
        println!("{runs} runs");
    });
    for mut sweeper in sweepers {
        let mut reaped = String::new();
        let mut out = sweeper.0.stdout.take().unwrap();
        assert_eq!(sweeper.terminate(), "");
        out.read_to_string(&mut reaped).unwrap();
        assert!(!reaped.lines().any(|line| line.starts_with("reaped")), "{reaped}");
    }
    place.verified();
}

/// `LASTBEAT_KILLS` makes it more.
#[test]
fn what_was_acknowledged_is_there_after_every_kill() {
    let place = Place::default();
    let url = format!("sqlite://{}", place.file("lastbeat.db").display());
    let mut numbers = Numbers(7);
    let (mut acknowledged, mut seen) = (Vec::new(), 0);
    let kills = extent("LASTBEAT_KILLS", 30);
    for kill in 0..kills {
        // Two at a time, so that one is killed while it waits for the other, too.
        let writers: Vec<Started> = (0..2)
            .map(|writer| {
                let number = (kill * 2 + writer).to_string();
                let mut command = Command::new(helper("acknowledge"));
                Started::new(command.args([&url, &number]).stdout(Stdio::piped()))
            })
            .collect();
        pause(Duration::from_millis(15 + numbers.below(60)));
        for mut writer in writers {
            writer.signal(Signal::KILL);
            let mut text = String::new();
            writer.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            acknowledged.extend(whole.lines().map(ToOwned::to_owned));
        }
        if kill % 10 == 9 || kill + 1 == kills {
            place.verified();
            let export = String::from_utf8(place.run(&["export"]).stdout).unwrap();
            let versions: std::collections::HashSet<String> = export
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .map(|fact| format!("{} {}", fact["run"].as_str().unwrap_or("service"), fact["version"]))
                .collect();
            for line in &acknowledged[seen..] {
                assert!(versions.contains(line), "{line} was acknowledged and is not there");
            }
            seen = acknowledged.len();
        }
    }
    assert!(acknowledged.len() > 100, "hardly anything was acknowledged, so nothing was tried");
    assert!(acknowledged.iter().any(|line| line.ends_with(" 4")), "no plain heartbeat was acknowledged");
    println!("{} kills, {} acknowledged writes", kills * 2, acknowledged.len());
}
