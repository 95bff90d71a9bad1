// One pass both writes and reads, in columns whose sums stay in registers. The square of the inputs' length is a sum that waits for
// itself and so costs nothing beside. No sum's order depends on the width of vectors, so it is the same everywhere.
#include "reuse-weights.h"

#include "widest-vectors.h"

#include <cstddef>

namespace {

template <int BYTES> struct lanes;
template <> struct lanes<32> { typedef float type __attribute__((vector_size(32), aligned(4), may_alias)); };
template <> struct lanes<64> { typedef float type __attribute__((vector_size(64), aligned(4), may_alias)); };

struct weights_pass {
    int rows, n;
    const float * inputs, * due, * step;
    float * weights, * worth;
};

// Experts from `at` on, as many as WIDTH vectors hold.
template <int BYTES, int WIDTH>
__attribute__((always_inline)) inline float read_column(const weights_pass & p, int at) {
    typedef typename lanes<BYTES>::type vector;
    vector sums[WIDTH], steps[WIDTH];  // in registers
    for (int w = 0; w < WIDTH; w++) {
        sums[w] = reinterpret_cast<const vector *>(p.worth + at)[w];
        steps[w] = reinterpret_cast<const vector *>(p.step + at)[w];
    }
    float norm = 1;
    for (int i = 0; i < p.rows; i++) {
        vector * row = reinterpret_cast<vector *>(p.weights + size_t(i) * size_t(p.n) + at);
        const float input = p.inputs[i], owed = p.due[i];
        for (int w = 0; w < WIDTH; w++) {
            const vector now = row[w] + owed * steps[w];
            row[w] = now;
            sums[w] += input * now;
        }
        norm += input * input;
    }
    for (int w = 0; w < WIDTH; w++) reinterpret_cast<vector *>(p.worth + at)[w] = sums[w];
    return norm;
}

// Those that fill no vector.
__attribute__((always_inline)) inline float read_rest(const weights_pass & p, int at) {
    float norm = 1;
    for (int i = 0; i < p.rows; i++) {
        float * row = p.weights + size_t(i) * size_t(p.n);
        for (int e = at; e < p.n; e++) {
            row[e] += p.due[i] * p.step[e];
            p.worth[e] += p.inputs[i] * row[e];
        }
        norm += p.inputs[i] * p.inputs[i];
    }
    return norm;
}

template <int BYTES>
__attribute__((always_inline)) inline float read_all(const weights_pass & p) {
    float norm = 1;
    int e = 0;
    for (; e + 32 <= p.n; e += 32) norm = read_column<BYTES, 128 / BYTES>(p, e);
    if (BYTES == 64 && e + 16 <= p.n) {
        norm = read_column<64, 1>(p, e);
        e += 16;
    }
    switch ((p.n - e) / 8) {
        case 3: norm = read_column<32, 3>(p, e); break;
        case 2: norm = read_column<32, 2>(p, e); break;
        case 1: norm = read_column<32, 1>(p, e); break;
    }
    e += (p.n - e) / 8 * 8;
    return e < p.n ? read_rest(p, e) : norm;
}

#if SEVERAL_TARGETS
// Not as clones of one function: vectors wider than the processor's are slow.
__attribute__((target("default"))) float read_widest(const weights_pass & p) { return read_all<32>(p); }
__attribute__((target("avx2"))) float read_widest(const weights_pass & p) { return read_all<32>(p); }
__attribute__((target("avx512f"))) float read_widest(const weights_pass & p) { return read_all<64>(p); }
#else
float read_widest(const weights_pass & p) { return read_all<32>(p); }
#endif

}  // namespace

float reuse_weights_read(int rows, int n, const float * inputs, const float * due, const float * step, float * weights, float * worth) {
    return read_widest({rows, n, inputs, due, step, weights, worth});
}
