// A fuzz target without a fuzzer, for any compiler: runs the seeds, a fixed number of mutations of them that are the same
// on every run, and files given as arguments (what a fuzzer found).
//
//   <target>-replay [--runs N] [--write-seeds FOLDER] [FILE...]
#include "fuzz-input.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

static uint64_t state = 0x9e3779b97f4a7c15ull;

static uint64_t next() {  // xorshift64 (Marsaglia 2003)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t below(size_t n) { return n ? size_t(next() % n) : 0; }

// Counts and sizes lie in 4 and 8 byte fields; their extremes break readers more often than random bytes do.
static void put_number(fuzz_bytes & b) {
    static const uint64_t numbers[] = {0, 1, 3, 4, 31, 33, 255, 4096, 1u << 31, 0xffffffff, uint64_t(1) << 32, uint64_t(1) << 62, uint64_t(INT64_MAX),
                                       uint64_t(-1), uint64_t(-32)};
    const uint64_t number = numbers[below(sizeof(numbers) / sizeof(numbers[0]))];
    const size_t bytes = next() % 2 ? 8 : 4;
    if (b.size() > bytes) memcpy(b.data() + below(b.size() - bytes), &number, bytes);
}

static void mutate(fuzz_bytes & b) {
    for (size_t changes = 1 + below(4); changes > 0 && !b.empty(); changes--) {
        // Most of a model is weights, which no reader looks at: change the header, at the front, nine times in ten.
        const size_t reach = next() % 10 ? std::min<size_t>(b.size(), 2600) : b.size();
        const size_t at = below(reach), n = 1 + below(40);
        switch (next() % 6) {
            case 0: b[at] ^= uint8_t(1 << (next() % 8)); break;
            case 1: b[at] = uint8_t(next()); break;
            case 2: put_number(b); break;
            case 3: b.erase(b.begin() + std::ptrdiff_t(at), b.begin() + std::ptrdiff_t(std::min(b.size(), at + n))); break;
            case 4: b.insert(b.begin() + std::ptrdiff_t(at), n, uint8_t(next())); break;
            default: if (next() % 4 == 0) b.resize(at);
        }
    }
}

int main(int argc, char ** argv) {
    long runs = 3000, total = 0;
    const std::vector<fuzz_bytes> seeds = fuzz_seeds();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--runs") == 0 && i + 1 < argc) {
            runs = strtol(argv[++i], nullptr, 10);
        } else if (strcmp(argv[i], "--write-seeds") == 0 && i + 1 < argc) {
            const std::string folder = argv[++i];
            for (size_t s = 0; s < seeds.size(); s++) fuzz_write(folder + "/seed-" + std::to_string(s), seeds[s].data(), seeds[s].size());
            return 0;
        } else {
            const fuzz_bytes found = fuzz_read(argv[i]);
            LLVMFuzzerTestOneInput(found.data(), found.size());
            total++;
        }
    }
    for (const auto & seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
    for (long i = 0; i < runs; i++) {
        fuzz_bytes b = seeds[size_t(i) % seeds.size()];
        mutate(b);
        LLVMFuzzerTestOneInput(b.data(), b.size());
    }
    printf("%ld inputs\n", total + long(seeds.size()) + runs);
    return 0;
}
