"""Reads the Dockerfiles as Docker would, as far as that is possible without it: instructions, stages, paths, the user.

Then lays out each image's file system with `rootfs` and starts the program in it, as its user and with nothing else around.
Programs come from the build folder (CARGO_TARGET_DIR, or ~/.cache/millrace/target) and must have been built.
"""

import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVICES = {"collector": "collector", "bridge": "broker-bridge", "engine": "stream-engine"}
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}


def instructions(text):
    """`(word, rest)` for each instruction; continued lines are joined, comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def ignored(path, patterns):
    """Does the .dockerignore keep `path` out of the build? The last pattern that fits decides."""
    out = False
    for pattern in patterns:
        keep = pattern.startswith("!")
        pattern = pattern.lstrip("!").rstrip("/")
        if fnmatch.fnmatch(path, pattern) or path.startswith(pattern + "/"):
            out = not keep
    return out


def problems(service, text, ignore):
    package, binary = SERVICES[service], f"millrace-{service}"
    patterns = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    stages, copied, stage, last = [], set(), None, {}
    arguments, installed = {}, ""
    for word, rest in instructions(text):
        if word not in INSTRUCTIONS:
            yield f"{word} is no instruction that is used here"
            continue
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            image, _, name = re.sub(r"\s+AS\s+", " ", rest, flags=re.I).partition(" ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), image)
            stage, last = name, {}
            stages.append((image, name))
        elif stage is None and not stages:
            yield f"{word} before the first FROM"
        elif word == "COPY":
            source = re.match(r"--from=(\S+)\s+", rest)
            paths = rest[source.end():].split() if source else rest.split()
            if source:
                if source[1] not in [name for _, name in stages[:-1]]:
                    yield f"COPY from {source[1]}, which is no stage before this one"
                continue
            for path in paths[:-1]:
                if not (ROOT / path).exists():
                    yield f"COPY {path}: there is no such path"
                elif ignored(path, patterns):
                    yield f"COPY {path}: the .dockerignore keeps it out"
                copied.add(path)
        elif word == "RUN":
            installed += rest
            for option in re.findall(r"--mount=(\S+)", rest):
                if "type=cache" not in option or "target=/" not in option:
                    yield f"--mount={option} is no cache with a target"
        elif word == "ENV":
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY", rest, re.I):
                yield f"ENV {rest.split('=')[0]} looks like a secret"
        last[word] = rest

    manifest = (ROOT / "Cargo.toml").read_text()
    members = re.findall(r'"([^"]+)"', re.search(r"^members = \[(.*?)\]", manifest, re.S | re.M)[1])
    for needed in [*members, "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo"]:
        if needed not in copied:
            yield f"cargo needs {needed}, which is not copied"
    toolchain = re.search(r'channel = "([^"]+)"', (ROOT / "rust-toolchain.toml").read_text())[1]
    if not stages or stages[0][0] != f"rust:{toolchain}-bookworm":
        yield f"the build stage is not rust:{toolchain}-bookworm, which rust-toolchain.toml asks for"
    if f"RUSTUP_TOOLCHAIN={toolchain}" not in text:
        yield "RUSTUP_TOOLCHAIN is not the toolchain of rust-toolchain.toml"
    for tool in ("clang", "mold"):
        if tool not in installed:
            yield f"{tool}, which .cargo/config.toml names, is not installed"
    if not re.search(rf"cargo build --release --locked -p {package} --bin {binary}\b", installed):
        yield f"{binary} of {package} is not built with --release --locked"
    for name in (package, binary):
        if not re.search(rf'^name = "{name}"$', (ROOT / package / "Cargo.toml").read_text(), re.M):
            yield f"{package}/Cargo.toml has no package or program {name}"
    if stages and stages[-1][0] != "scratch":
        yield "the last stage is not scratch"
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield f"the last USER is {last.get('USER')!r}, and must be a numeric user and group above 0"
    if last.get("ENTRYPOINT") != f'["/usr/bin/{binary}"]':
        yield "the ENTRYPOINT is not the program, as a list (a shell is not there)"


def start(service):
    """`--version` inside the image's file system."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path.home() / ".cache/millrace/target")
    binary = target / "debug" / f"millrace-{service}"
    assert binary.exists(), f"{binary} is not built: cargo build --workspace --bins"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        subprocess.run([HERE / "rootfs", binary, folder], check=True)
        inside = [f"/usr/bin/{binary.name}", "--version"]
        if os.geteuid() == 0:
            command = ["chroot", "--userspec=65532:65532", folder, *inside]
        else:
            command = ["unshare", "--map-root-user", "chroot", folder, *inside]
        ran = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        assert ran.returncode == 0 and ran.stdout.startswith(f"millrace-{service} "), f"{ran}"
        assert not shutil.which("sh", path=f"{folder}/bin:{folder}/usr/bin"), "there is a shell in the image"


# What is done to a good Dockerfile, and a word that the report must contain then.
MUTATIONS = [
    ("USER removed", "USER 65532:65532\n", "", "the last USER is None"),
    ("USER root", "USER 65532:65532", "USER 0:0", "must be a numeric user"),
    ("USER by name", "USER 65532:65532", "USER millrace", "must be a numeric user"),
    ("a path that is not there", "COPY proto proto", "COPY protto proto", "there is no such path"),
    ("a member that is not copied", "COPY examples examples\n", "", "cargo needs examples"),
    ("a stage that is not there", "--from=build /rootfs", "--from=builder /rootfs", "no stage before"),
    ("another Debian", "rust:1.95.0-bookworm\n\n", "rust:latest\n\n", "the build stage is not"),
    ("another base", "FROM scratch", "FROM debian:bookworm", "the last stage is not scratch"),
    ("an unknown instruction", "EXPOSE", "EXPOSED", "is no instruction"),
    ("a secret", "ENV RUSTUP", "ENV KAFKA_PASSWORD=x\nENV RUSTUP", "looks like a secret"),
    ("a lock file that may change", "--locked", "", "is not built with"),
    ("a shell as entry point", 'ENTRYPOINT ["', 'ENTRYPOINT sh ["', "the ENTRYPOINT is not"),
    ("no linker", " mold", "", "mold, which"),
]


def main():
    passed, failed = 0, []

    def test(name, check):
        nonlocal passed
        try:
            check()
            passed += 1
        except (AssertionError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"FAILED {name}\n  {error}")

    def clean(service, text, ignore):
        found = list(problems(service, text, ignore))
        assert not found, "\n  ".join(found)

    def caught(service, text, ignore, word):
        found = list(problems(service, text, ignore))
        assert any(word in problem for problem in found), f"not found; the rules say {found or 'that all is well'}"

    for service in SERVICES:
        file = HERE / f"{service}.Dockerfile"
        text, ignore = file.read_text(), (HERE / f"{file.name}.dockerignore").read_text()
        test(f"{file.name}: can be built", lambda: clean(service, text, ignore))
        for name, old, new, word in MUTATIONS:
            assert old in text, f"{file.name} has no {old!r} to replace"
            test(f"{file.name}: {name} is found", lambda: caught(service, text.replace(old, new), ignore, word))
        test(f"{file.name}: a path that is ignored is found", lambda: caught(service, text, ignore.replace("!proto\n", ""), "keeps it out"))
        test(f"{file.name}: the program starts in the image's file system", lambda: start(service))
    print(f"images: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
