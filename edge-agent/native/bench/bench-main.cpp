#include "bench-modes.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static int usage() {
    fprintf(stderr, "usage: moefleet_bench stock MODEL TEXT TOKENS CONTEXT THREADS PASSES EXTRA_BUFTS\n"
                    "       moefleet_bench probe FILE LANES SLICE_BYTES BURST_BYTES PAUSE_NS FOR_NS SKIP_NS\n"
                    "       moefleet_bench drop FILE\n");
    return 2;
}

// False where `text` is no integer from `least` to 2^53.
static bool read_number(const char * text, int64_t least, int64_t & out) {
    char * end = nullptr;
    out = strtoll(text, &end, 10);
    return end != text && *end == 0 && out >= least && out <= (int64_t(1) << 53);
}

static bool read_numbers(char ** texts, int n, const int64_t * least, int64_t * out) {
    for (int i = 0; i < n; i++) {
        if (!read_number(texts[i], least[i], out[i])) return false;
    }
    return true;
}

int main(int argc, char ** argv) {
    const char * mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "stock") == 0 && argc == 9) {
        const int64_t least[5] = {1, 1, 1, 1, 0};
        int64_t n[5];
        if (!read_numbers(argv + 4, 5, least, n)) return usage();
        return stock_decode({argv[2], argv[3], int32_t(n[0]), int32_t(n[1]), int32_t(n[2]), int32_t(n[3]), n[4] != 0});
    }
    if (strcmp(mode, "probe") == 0 && argc == 9) {
        const int64_t least[6] = {1, 4096, 4096, 0, 1, 0};
        int64_t n[6];
        if (!read_numbers(argv + 3, 6, least, n)) return usage();
        return read_probe({argv[2], int32_t(n[0]), uint64_t(n[1]), uint64_t(n[2]), n[3], n[4], n[5]});
    }
    if (strcmp(mode, "drop") == 0 && argc == 3) return drop_cache(argv[2]);
    return usage();
}
