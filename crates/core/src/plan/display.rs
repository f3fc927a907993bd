//! A plan as text: what the snapshots in the tests and `sparoa plan` show.

use std::fmt;

use super::{Arg, Lane, Plan, Step, Task, Transfer};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "plan {}: {} cpu tasks, {} gpu tasks in {} segments, {} uploads, {} downloads, \
             {} events, arena {} B, slots {:?} B",
            self.model,
            self.cpu.len(),
            self.gpu.len(),
            self.segments.len(),
            self.uploads.len(),
            self.downloads.len(),
            self.events,
            self.arena_bytes,
            self.slots
        )?;
        for lane in Lane::ALL {
            if self.lane(lane).is_empty() {
                continue;
            }
            writeln!(f, "{lane}:")?;
            for &step in self.lane(lane) {
                match step {
                    Step::Run(i) => self.task(f, &self.cpu[i], "run")?,
                    Step::Submit(i) => {
                        writeln!(f, "  submit {i}")?;
                        for task in &self.gpu[self.segments[i].clone()] {
                            self.task(f, task, "  launch")?;
                        }
                    }
                    Step::Copy(i) => {
                        let copies = match lane {
                            Lane::HostToDevice => &self.uploads,
                            _ => &self.downloads,
                        };
                        self.copy(f, &copies[i])?;
                    }
                    Step::Signal(e) => writeln!(f, "  signal {e}")?,
                    Step::Wait(e) => writeln!(f, "  wait {e}")?,
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    fn task(&self, f: &mut fmt::Formatter<'_>, task: &Task, verb: &str) -> fmt::Result {
        write!(f, "  {verb} {} ({})", task.name, task.op.op_type())?;
        for arg in task.inputs.iter().flatten() {
            if let Arg::Region(r) = arg {
                self.region(f, r.buffer, r.range())?;
            }
        }
        write!(f, " ->")?;
        for r in &task.outputs {
            self.region(f, r.buffer, r.range())?;
        }
        writeln!(f)
    }

    fn copy(&self, f: &mut fmt::Formatter<'_>, copy: &Transfer) -> fmt::Result {
        write!(f, "  copy")?;
        self.region(f, copy.buffer, copy.range.clone())?;
        writeln!(f)
    }

    fn region(
        &self,
        f: &mut fmt::Formatter<'_>,
        buffer: usize,
        range: std::ops::Range<usize>,
    ) -> fmt::Result {
        let b = &self.buffers[buffer];
        if range == (0..b.bytes) {
            write!(f, " {}", b.name)
        } else {
            write!(f, " {}[{}..{}]", b.name, range.start, range.end)
        }
    }
}
