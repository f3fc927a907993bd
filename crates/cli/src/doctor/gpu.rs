//! The GPU: whether the driver in use is the hardware's, and what keeps it from being used.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Subject, Verdict,
    tree::{entries, name, shown, text},
};
use crate::sessions::GpuState;

/// Whose GPUs the kernel shows: `NVIDIA`, `AMD`, `Intel` or `board` for those on a chip.
fn hardware(root: &Path) -> Vec<&'static str> {
    let mut makers = Vec::new();
    for node in entries(root, "sys/class/drm") {
        if !name(&node).starts_with("renderD") {
            continue;
        }
        makers.extend(match text(root, node.join("device/vendor")).as_deref() {
            Some("0x10de") => Some("NVIDIA"),
            Some("0x1002") => Some("AMD"),
            Some("0x8086") => Some("Intel"),
            // Screens of virtual machines do not compute.
            Some(_) => None,
            None => Some("board"),
        });
    }
    if ["dev/nvidia0", "dev/nvidiactl"].iter().any(|node| root.join(node).exists()) {
        makers.push("NVIDIA");
    }
    if ["dev/nvhost-gpu", "dev/nvgpu"].iter().any(|node| root.join(node).exists()) {
        makers.push("board");
    }
    makers.sort_unstable();
    makers.dedup();
    makers
}

/// How to get the maker's Vulkan driver.
fn driver_advice(makers: &[&str]) -> String {
    let of = |maker: &&str| match *maker {
        "NVIDIA" => {
            "install NVIDIA's driver with its Vulkan part (Ubuntu: libnvidia-gl-VERSION); in a \
             container run with --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all"
        }
        "board" => {
            "install the board vendor's Vulkan driver (Jetson: apt-get install nvidia-l4t-3d-core)"
        }
        _ => "apt-get install mesa-vulkan-drivers; in a container run with --device /dev/dri",
    };
    makers.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn has_loader(root: &Path) -> bool {
    let arch = std::env::consts::ARCH;
    let dirs = ["usr/lib", "usr/lib64", "usr/local/lib", "lib", "lib64"];
    let multiarch = [format!("usr/lib/{arch}-linux-gnu"), format!("lib/{arch}-linux-gnu")];
    let mut all = dirs.into_iter().chain(multiarch.iter().map(String::as_str));
    all.any(|dir| root.join(dir).join("libvulkan.so.1").exists())
}

fn manifests(root: &Path) -> Vec<PathBuf> {
    ["usr/share/vulkan/icd.d", "etc/vulkan/icd.d", "usr/local/share/vulkan/icd.d"]
        .iter()
        .flat_map(|dir| entries(root, dir))
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect()
}

pub(super) fn driver(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    let makers = hardware(root);
    let why = match &subject.gpu {
        GpuState::Unused(why) => return Verdict::unavailable(why),
        GpuState::Open(info) => {
            let found = format!("{}; {}", info.name, info.driver);
            return match (info.software, makers.is_empty()) {
                (false, _) => Verdict::ok(found),
                (true, true) => Verdict::ok(format!("{found}: software, there is no GPU to see")),
                (true, false) => Verdict::problem(
                    format!("{found}: software, though a GPU is here ({})", makers.join(", ")),
                    driver_advice(&makers),
                ),
            };
        }
        GpuState::Failed(why) => why,
    };
    if !makers.is_empty() {
        let found = format!("a GPU is here ({}) and cannot be used: {why}", makers.join(", "));
        let loader = if has_loader(root) { "" } else { "apt-get install libvulkan1; " };
        return Verdict::problem(found, format!("{loader}{}", driver_advice(&makers)));
    }
    let manifests = manifests(root);
    let (missing, advice) = match (has_loader(root), manifests.as_slice()) {
        (false, _) => ("no Vulkan loader", "apt-get install libvulkan1 mesa-vulkan-drivers"),
        (true, []) => ("no Vulkan driver", "apt-get install mesa-vulkan-drivers"),
        (true, _) => (
            "no Vulkan driver that works",
            "see what it says: vulkaninfo --summary (package vulkan-tools); look at VK_DRIVER_FILES \
             and VK_ICD_FILENAMES",
        ),
    };
    // Only tests and comparisons lose by it.
    Verdict::unavailable(format!("there is no GPU to see, and {missing}"))
        .advise(format!("to emulate one in software: {advice}"))
}

/// Nodes through which a GPU is reached.
fn nodes(root: &Path) -> Vec<PathBuf> {
    let render = entries(root, "dev/dri").into_iter().filter(|p| name(p).starts_with("renderD"));
    let others = ["dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu", "dev/nvmap", "dev/nvgpu"];
    render.chain(others.iter().map(|node| root.join(node)).filter(|p| p.exists())).collect()
}

/// The group of a file, by name where it has one.
#[cfg(unix)]
fn group(root: &Path, path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(id) = fs::metadata(path).map(|m| m.gid().to_string()) else {
        return "render".to_owned();
    };
    let groups = text(root, "etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    named.unwrap_or(id)
}

#[cfg(not(unix))]
fn group(_: &Path, _: &Path) -> String {
    "render".to_owned()
}

pub(super) fn access(subject: &Subject<'_>) -> Verdict {
    let root = subject.root;
    let nodes = nodes(root);
    if nodes.is_empty() {
        let makers = hardware(root);
        return if makers.is_empty() {
            Verdict::unavailable("no device nodes of GPUs")
        } else {
            Verdict::problem(
                format!("the kernel shows a GPU ({}) without a device node", makers.join(", ")),
                "in a container: docker run --device /dev/dri (AMD, Intel) or --gpus all (NVIDIA)",
            )
        };
    }
    for node in &nodes {
        let Err(e) = fs::OpenOptions::new().read(true).write(true).open(node) else { continue };
        let found = format!("{} cannot be opened: {e}", shown(root, node));
        return if e.kind() == std::io::ErrorKind::PermissionDenied {
            let group = group(root, node);
            Verdict::problem(found, format!("sudo usermod -aG {group} $USER, then log in again"))
        } else {
            Verdict::problem(found, "the driver does not answer: see sudo dmesg")
        };
    }
    let list: Vec<String> = nodes.iter().map(|node| shown(root, node)).collect();
    Verdict::ok(list.join(", "))
}

pub(super) fn unified_memory(subject: &Subject<'_>) -> Verdict {
    let Some(info) = subject.gpu_info() else {
        return Verdict::unavailable("no GPU is open");
    };
    if !info.unified_memory {
        return Verdict::ok("of its own: tensors are copied to it and back");
    }
    if info.features.iter().any(|f| f == "zero-copy") {
        return Verdict::ok("the CPU's: mapped where measurement says that it is faster");
    }
    Verdict::warn(
        "the CPU's, yet the driver maps no buffers: tensors are copied",
        "use a newer Vulkan driver",
    )
}

pub(super) fn software_threads(subject: &Subject<'_>) -> Verdict {
    match (subject.gpu_info(), &subject.lp_num_threads) {
        (None, _) => Verdict::unavailable("no GPU is open"),
        (Some(info), _) if !info.software => Verdict::ok("not in use"),
        (_, Some(threads)) => Verdict::ok(format!("LP_NUM_THREADS={threads}")),
        (_, None) => Verdict::warn(
            "Mesa's emulation takes all cores, which the CPU's kernels need too",
            "LP_NUM_THREADS=1 for a GPU of one core, with --threads for the rest",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Status::{Ok, Problem, Unavailable, Warn},
        testing::{check_cases, expect, gpu, machine, subject},
    };

    const NVIDIA: (&str, &str) = ("sys/class/drm/renderD128/device/vendor", "0x10de\n");
    const AMD: (&str, &str) = ("sys/class/drm/renderD129/device/vendor", "0x1002\n");
    const SCREEN: (&str, &str) = ("sys/class/drm/renderD128/device/vendor", "0x1af4\n");
    const BOARD: (&str, &str) = ("sys/class/drm/renderD128/device/uevent", "DRIVER=panfrost\n");
    const LOADER: (&str, &str) = ("usr/lib64/libvulkan.so.1", "");
    const MANIFEST: (&str, &str) = ("usr/share/vulkan/icd.d/lvp_icd.json", "{}");

    #[test]
    fn drivers_that_are_missing() {
        check_cases(
            driver,
            &[
                (&[], Unavailable, "no Vulkan loader", "libvulkan1"),
                (&[LOADER], Unavailable, "no Vulkan driver", "mesa-vulkan-drivers"),
                (&[LOADER, MANIFEST], Unavailable, "that works", "vulkaninfo"),
                (&[SCREEN, LOADER], Unavailable, "no GPU to see", ""),
                (&[NVIDIA], Problem, "(NVIDIA)", "libvulkan1; install NVIDIA's"),
                (&[AMD, LOADER], Problem, "(AMD)", "apt-get install mesa-vulkan-drivers"),
                (&[BOARD], Problem, "(board)", "vendor's Vulkan driver"),
                (&[("dev/nvidia0", "")], Problem, "(NVIDIA)", "--gpus all"),
                (&[("dev/nvhost-gpu", "")], Problem, "(board)", "Jetson"),
            ],
        );
    }

    #[test]
    fn drivers_in_use() {
        let (none, nvidia) = (machine(&[]), machine(&[NVIDIA, AMD]));
        let real = || gpu("NVIDIA T4", false, false, &[]);
        let software = || gpu("llvmpipe", true, true, &[]);
        let unused = || GpuState::Unused("not used (the policy is cpu)".to_owned());
        for (root, gpu, status, found, advice) in [
            (&nvidia, real(), Ok, "NVIDIA T4; Vulkan, Mesa", ""),
            (&none, real(), Ok, "NVIDIA T4", ""),
            (&none, software(), Ok, "no GPU to see", ""),
            (
                &nvidia,
                software(),
                Problem,
                "software, though a GPU is here (AMD, NVIDIA)",
                "--gpus",
            ),
            (&nvidia, unused(), Unavailable, "the policy is cpu", ""),
        ] {
            let mut subject = subject(root.path());
            subject.gpu = gpu;
            expect(&driver(&subject), status, found, advice);
        }
    }

    #[test]
    fn nodes_that_refuse() {
        let render = "dev/dri/renderD128";
        check_cases(
            access,
            &[
                (&[], Unavailable, "no device nodes", ""),
                (&[("dev/dri/card0", "")], Unavailable, "no device nodes", ""),
                (&[AMD], Problem, "(AMD)", "--device /dev/dri"),
                (&[AMD, (render, "")], Ok, "/dev/dri/renderD128", ""),
                (&[("dev/nvidia0", "DIR")], Problem, "/dev/nvidia0 cannot be opened", "dmesg"),
            ],
        );
    }

    #[cfg(unix)]
    #[test]
    fn nodes_of_a_group_that_we_are_not_in() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let root = machine(&[("dev/dri/renderD128", "")]);
        let node = root.path().join("dev/dri/renderD128");
        let id = fs::metadata(&node).unwrap().gid();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/group"), format!("broken\nrender:x:{id}:\n")).unwrap();
        assert_eq!(group(root.path(), &node), "render");
        fs::write(root.path().join("etc/group"), "").unwrap();
        assert_eq!(group(root.path(), &node), id.to_string());
        fs::set_permissions(&node, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::File::open(&node).is_ok() {
            println!("skipped: this user may open every file");
            return;
        }
        expect(&access(&subject(root.path())), Problem, "cannot be opened", "usermod -aG");
    }

    #[test]
    fn memory_of_the_gpu() {
        let root = machine(&[]);
        for (state, status, found) in [
            (GpuState::Failed("x".to_owned()), Unavailable, "no GPU"),
            (gpu("T4", false, false, &[]), Ok, "of its own"),
            (gpu("Orin", false, true, &["zero-copy"]), Ok, "mapped"),
            (gpu("Orin", false, true, &["f16"]), Warn, "copied"),
        ] {
            let mut subject = subject(root.path());
            subject.gpu = state;
            expect(&unified_memory(&subject), status, found, "");
        }
    }

    #[test]
    fn threads_of_the_emulation() {
        let root = machine(&[]);
        let software = || gpu("llvmpipe", true, true, &[]);
        for (state, threads, status, found) in [
            (GpuState::Failed("x".to_owned()), None, Unavailable, "no GPU"),
            (gpu("T4", false, false, &[]), None, Ok, "not in use"),
            (software(), Some("1"), Ok, "LP_NUM_THREADS=1"),
            (software(), None, Warn, "all cores"),
        ] {
            let mut subject = subject(root.path());
            subject.gpu = state;
            subject.lp_num_threads = threads.map(str::to_owned);
            expect(&software_threads(&subject), status, found, "");
        }
    }
}
