#include "bench-modes.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

static int usage() {
    fprintf(stderr, "usage: moefleet_bench stock MODEL TEXT TOKENS CONTEXT THREADS PASSES EXTRA_BUFTS\n"
                    "       moefleet_bench hook MODEL TEXT TOKENS THREADS PASSES\n"
                    "       moefleet_bench probe MODEL LANES BYTES_PER_SECOND PAUSE_NS FOR_NS SKIP_NS MISSES,MISSES,...\n"
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

// Counts that are not all 0, with commas between.
static bool read_list(const std::string & text, std::vector<int32_t> & out) {
    std::stringstream list(text);
    int64_t n = 0, sum = 0;
    for (std::string each; std::getline(list, each, ',');) {
        if (!read_number(each.c_str(), 0, n) || n > (1 << 20)) return false;
        out.push_back(int32_t(n));
        sum += n;
    }
    return sum > 0;
}

int main(int argc, char ** argv) {
    const char * mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "stock") == 0 && argc == 9) {
        const int64_t least[5] = {1, 1, 1, 1, 0};
        int64_t n[5];
        if (!read_numbers(argv + 4, 5, least, n)) return usage();
        return stock_decode({argv[2], argv[3], int32_t(n[0]), int32_t(n[1]), int32_t(n[2]), int32_t(n[3]), n[4] != 0});
    }
    if (strcmp(mode, "hook") == 0 && argc == 7) {
        const int64_t least[3] = {1, 1, 1};
        int64_t n[3];
        if (!read_numbers(argv + 4, 3, least, n)) return usage();
        return hook_overhead({argv[2], argv[3], int32_t(n[0]), int32_t(n[0]), int32_t(n[1]), int32_t(n[2]), false});
    }
    if (strcmp(mode, "probe") == 0 && argc == 9) {
        const int64_t least[5] = {1, 0, 0, 1, 0};
        int64_t n[5];
        std::vector<int32_t> misses;
        if (!read_numbers(argv + 3, 5, least, n) || !read_list(argv[8], misses)) return usage();
        return read_probe({argv[2], int32_t(n[0]), uint64_t(n[1]), n[2], n[3], n[4], misses});
    }
    if (strcmp(mode, "drop") == 0 && argc == 3) return drop_cache(argv[2]);
    return usage();
}
