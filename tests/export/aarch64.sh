#!/usr/bin/env bash
# An aarch64 machine in one folder: qemu, Debian's arm64 Python, the wheels that a device installs.
# Packages are unpacked as plain files: no root, no chroot, nothing of this machine is touched.
# Usage: aarch64.sh FOLDER CONSTRAINTS; then FOLDER/stategate is the command, emulated, with the
# rooms of this checkout; -P, because its root has a folder stategate without them. Started again
# after a failure, it goes on with what was fetched.
set -euo pipefail
mkdir -p "$1"
machine=$(cd "$1" && pwd)
constraints=$(realpath "$2")
rooms=$(cd "$(dirname "$0")/../.." && pwd)/.view
# bookworm's qemu 7.2 dies at `import onnxruntime`; trixie's 10.0 does not.
suite=trixie
python=3.13

for program in apt-get dpkg-deb; do
  command -v $program > /dev/null || { echo "no $program: this needs Debian" >&2; exit 1; }
done
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
test -n "$mirror" || { echo "apt knows no mirror of Debian; add one and run apt-get update" >&2; exit 1; }

host=$(dpkg --print-architecture)

# apt with lists and a status of its own, in which nothing is installed.
apt=$machine/apt
mkdir -p "$apt"/lists/partial "$apt"/archives/partial
: > "$apt/status"
echo "deb $mirror $suite main" > "$apt/sources.list"
cat > "$apt/apt.conf" <<CONF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Architecture "arm64";
APT::Architectures { "arm64"; "$host"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
CONF
own() { apt-get --config-file "$apt/apt.conf" -qq "$@"; }
own update
own --download-only install "python$python" libstdc++6
own --download-only install "qemu-user:$host"

rm -rf "$machine/root" && mkdir -p "$machine/root/usr/lib"
ln -s usr/lib "$machine/root/lib"
for package in "$apt"/archives/*_{arm64,all}.deb; do dpkg-deb -x "$package" "$machine/root"; done
dpkg-deb --fsys-tarfile "$apt"/archives/qemu-user_*.deb |
  tar -x -C "$machine" --strip-components 3 ./usr/bin/qemu-aarch64

# pip takes a platform by its letter, and wheels are tagged with any of these.
tags=(manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64)
rm -rf "$machine/site"
"${PYTHON:-python3}" -m pip --quiet install --no-warn-conflicts --target "$machine/site" --only-binary :all: \
  --python-version $python "${tags[@]/#/--platform=}" -c "$constraints" \
  numpy msgspec click onnxruntime

cat > "$machine/stategate" <<RUN
#!/bin/sh
PYTHONPATH="$rooms:$machine/site" exec "$machine/qemu-aarch64" -cpu cortex-a76 \\
  -L "$machine/root" "$machine/root/usr/bin/python$python" \\
  -P -c 'from stategate.cli.main import main; main()' "\$@"
RUN
chmod +x "$machine/stategate"
rm -rf "$apt"
