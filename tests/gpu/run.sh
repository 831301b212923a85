#!/bin/bash
# Checks a GPU machine: run.sh OUT writes what it finds to the folder OUT and prints it.
#
# Needs a driver, and python3 with torch (and transformers, for whole models) for the peers. Every
# section has a time limit; the exit status is 1 if any kernel or model is wrong or any case was not
# run.
out=${1:?usage: run.sh OUT}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
parts=$(mktemp -d) || exit 1
trap 'rm -rf "$parts"' EXIT
tar -xzf "$(dirname "$0")/parts.tar.gz" -C "$parts" && cd "$parts" || exit 1
export BROLLY_CACHE=$out/cache
status=0

# cuBLASLt, where it comes with PyTorch.
if [ -z "$BROLLY_CUBLASLT" ]; then
    found=$(python3 -c 'import glob, sys
found = [f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib/libcublasLt.so.1[23]")]
print(found[0] if found else "")' 2>/dev/null)
    [ -z "$found" ] || export BROLLY_CUBLASLT=$found
fi

section() {
    echo
    echo "== $1 ($SECONDS s)"
}

# So many seconds, or what is left of the eight minutes that all may take.
left() {
    local rest=$((480 - SECONDS))
    [ "$rest" -gt 1 ] || rest=1
    echo $((rest < $1 ? rest : $1))
}

# Runs `brolly bench` on a shape: NAME, tokens of the prompt, new tokens, streams.
bench() {
    local file="$out/bench-$1-$2-$4.json"
    if timeout "$(left 60)" ./brolly bench "shapes/$1.brolly" --prompt-tokens "$2" --gen-tokens "$3" \
        --batch "$4" --json >"$file" 2>>"$out/bench.log"; then
        tr ',' '\n' <"$file" | grep -E '"(first_token_ms|prefill_tokens_per_s|decode_tokens_per_s|decode_step_ms|predicted_peak_bytes|measured_peak_bytes|read_bandwidth|decode_percent_of_bandwidth|prefill_percent_of_peak|load_ms)"' |
            tr '\n' ' ' | sed "s/^/$1, $2 + $3 tokens, $4 streams: /"
        echo
    else
        echo "$1, $2 + $3 tokens, $4 streams: FAILED"
        tail -n 3 "$out/bench.log"
        status=1
    fi
}

section "machine"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit,memory.used \
    --format=csv,noheader || echo "no nvidia-smi"

section "models"
timeout "$(left 60)" ./gpu-check . --models 2>"$out/models.log" | tee "$out/models.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
tail -n 5 "$out/models.log"

section "checks"
timeout "$(left 100)" ./gpu-check . --seconds "$(left 90)" --json "$out/checks.json" 2>"$out/checks.log" |
    tee "$out/checks.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
tail -n 5 "$out/checks.log"

section "shapes"
bench llama-1b 512 64 1
bench llama-8b 2048 64 1
bench llama-8b 512 64 64

section "training"
rm -rf checkpoints gpt2-124m/metrics.jsonl
if timeout "$(left 90)" ./brolly train gpt2-124m/run.toml --artifact gpt2-124m/run.brolly 2>"$out/train.log" >&2; then
    tail -n 10 gpt2-124m/metrics.jsonl | grep -o '"tokens_per_s":[0-9.e+]*' | cut -d: -f2 |
        sort -g | sed -n 5p | sed 's/^/gpt2-124m, 16 x 1024 tokens a step: tokens a second: /'
    tail -n 1 gpt2-124m/metrics.jsonl
    cp gpt2-124m/metrics.jsonl "$out/"
else
    echo "training FAILED"
    tail -n 3 "$out/train.log"
    status=1
fi
rm -rf checkpoints

section "cold start"
for store in /dev/shm "$out" ""; do
    [ -w "$store" ] && [ "$(df --output=avail -k "$store" | tail -n 1)" -gt 20000000 ] && break
done
if [ -z "$store" ]; then
    echo "skipped: no 20 GB are free for a model"
elif timeout "$(left 60)" ./gpu-check . --store shapes/llama-8b.brolly "$store/llama-8b.brolly"; then
    for _ in 1 2; do
        begin=$(date +%s.%N)
        timeout "$(left 60)" ./brolly generate "$store/llama-8b.brolly" --tokens 1,2,3,4 --max-tokens 1 --json \
            >"$out/cold.json" 2>>"$out/bench.log" || status=1
        awk -v a="$begin" -v b="$(date +%s.%N)" \
            'BEGIN { printf "llama-8b from start to first token: %.2f s\n", b - a }'
    done
fi
rm -f "${store:-.}"/llama-8b.brolly*

section "peer: whole models"
timeout "$(left 100)" python3 models_peer.py "$out/models-peer.json" 2>"$out/models-peer.log" ||
    echo "the peer failed:"
tail -n 6 "$out/models-peer.log"

section "peer: training"
timeout "$(left 85)" python3 train_peer.py "$out/train-peer.json" 2>"$out/train-peer.log" ||
    echo "the peer failed:"
tail -n 3 "$out/train-peer.log"

section "peer"
peer=()
if timeout "$(left 85)" python3 peer.py "$out/peer.json" 2>"$out/peer.log"; then
    peer=(--peer "$out/peer.json")
else
    echo "the peer failed:"
fi
tail -n 8 "$out/peer.log"

section "cuBLASLt"
library=()
timeout "$(left 40)" ./gpu-check . --by-library "$out/cublaslt.json" --seconds "$(left 25)" \
    2>"$out/cublaslt.log" | tee "$out/cublaslt.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
[ -s "$out/cublaslt.json" ] && library=(--library "$out/cublaslt.json")
tail -n 3 "$out/cublaslt.log"

section "timings"
timeout "$(left 110)" ./gpu-check . --timings --seconds "$(left 95)" --json "$out/timings.json" "${peer[@]}" "${library[@]}" \
    2>"$out/timings.log" | tee "$out/timings.txt"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
tail -n 5 "$out/timings.log"

section "compute-sanitizer"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null |
    head -n 1)
if [ -n "$sanitizer" ]; then
    for only in "several tiles sm_90a" "gate sm_90a" "causal sm_90a" "mixed sm_90a" "odd k sm_80"; do
        timeout "$(left 20)" "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 \
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
