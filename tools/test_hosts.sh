#!/bin/sh
# Set up an environment of its own for each host that conflicts with the main one, and run its tests in tests/hosts.
#
#     tools/test_hosts.sh [edgetam] [ultralytics]    (both, unless told otherwise)
#
# An environment lies in .hosts/ and sees the main one's packages (torch, numpy, OpenCV, pytest) behind its own, so that
# no second torch is installed. torchvision comes in the version made for that torch; beside a CPU build its compiled
# part does not load, which the tests make up for (tools/torchvision_without_cuda.py).
set -eu
cd "$(dirname "$0")/.."
main=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

set_up() { # name, packages without their dependencies...
    folder=.hosts/$1
    shift
    if [ ! -f "$folder/.ready" ]; then
        .venv/bin/python -m venv "$folder"
        own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$main" > "$own/main.pth"
        "$folder/bin/python" -m pip install -q --no-deps "$@"
        touch "$folder/.ready"
    fi
}

[ $# -gt 0 ] || set -- edgetam ultralytics
for host in "$@"; do
    case $host in
    edgetam) # installs a package that calls itself sam2
        set_up edgetam edgetam-dimos==1.0.1
        env PYTHONPATH="$PWD" .hosts/edgetam/bin/python -m pytest -q tests/hosts/test_edgetam.py
        ;;
    ultralytics)
        set_up ultralytics ultralytics==8.4.190 torchvision==0.28.0
        YOLO_OFFLINE=true YOLO_CONFIG_DIR="$PWD/.hosts/settings" PYTHONPATH="$PWD" \
            .hosts/ultralytics/bin/python -m pytest -q tests/hosts/test_ultralytics.py
        ;;
    *)
        echo "no such host: $host; there are edgetam and ultralytics" >&2
        exit 2
        ;;
    esac
done
