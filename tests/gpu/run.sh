#!/bin/bash
# Checks a GPU machine: run.sh OUT writes what it finds to the folder OUT and prints it.
#
# Needs a driver, and python3 with torch for the peer. Every section has a time limit; the exit
# status is 1 if any kernel is wrong or any case was not run.
cd "$(dirname "$0")" || exit 1
out=${1:?usage: run.sh OUT}
mkdir -p "$out"
chmod +x gpu-check
status=0

section() {
    echo
    echo "== $1 ($SECONDS s)"
}

section "machine"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit,memory.used \
    --format=csv,noheader || echo "no nvidia-smi"

section "checks"
timeout 120 ./gpu-check . --seconds 105 --json "$out/checks.json" 2>"$out/checks.log" |
    tee "$out/checks.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
tail -n 5 "$out/checks.log"

section "peer"
peer=()
if timeout 85 python3 peer.py "$out/peer.json" 2>"$out/peer.log"; then
    peer=(--peer "$out/peer.json")
else
    echo "the peer failed:"
fi
tail -n 8 "$out/peer.log"

section "timings"
timeout 110 ./gpu-check . --timings --seconds 95 --json "$out/timings.json" "${peer[@]}" \
    2>"$out/timings.log" | tee "$out/timings.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
tail -n 5 "$out/timings.log"

section "compute-sanitizer"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null |
    head -n 1)
if [ -n "$sanitizer" ]; then
    for only in "several tiles sm_90a" "gate sm_90a" "causal sm_90a" "mixed sm_90a" "odd k sm_80"; do
        timeout 20 "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 \
            ./gpu-check . --only "$only" --worker-from 0 >>"$out/sanitizer.log" 2>&1
        code=$?
        echo "$only: exit $code"
        [ "$code" = 0 ] || [ "$code" = 124 ] || status=1
    done
    grep -E "Invalid|Error|ERROR SUMMARY|hazard" "$out/sanitizer.log" | sort | uniq -c | head -n 12
else
    echo "skipped: there is no compute-sanitizer"
fi

section "done, status $status"
exit "$status"
