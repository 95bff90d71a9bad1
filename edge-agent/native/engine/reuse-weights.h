// The pass over the weights of a reuse predictor, by far the most of its work: it both writes and reads, in columns whose sums stay in
// registers.
#pragma once

#include "vector-sums.h"

struct weights_pass {
    int rows, n;  // rows is even
    const float * inputs, * due, * step;
    float * weights, * worth;
};

// Experts from `at` on, as many as WIDTH vectors hold. Two sums each, of even and of odd rows, as a sum has to wait for the one before.
template <int BYTES, int WIDTH>
INLINED void read_column(const weights_pass & p, int at) {
    typedef typename float_vector<BYTES>::type vector;
    vector even[WIDTH], odd[WIDTH], steps[WIDTH];
    for (int w = 0; w < WIDTH; w++) {
        even[w] = reinterpret_cast<const vector *>(p.worth + at)[w];
        odd[w] = vector{};
        steps[w] = reinterpret_cast<const vector *>(p.step + at)[w];
    }
    for (int i = 0; i < p.rows; i += 2) {
        vector * first = reinterpret_cast<vector *>(p.weights + size_t(i) * size_t(p.n) + at);
        vector * second = reinterpret_cast<vector *>(p.weights + size_t(i + 1) * size_t(p.n) + at);
        for (int w = 0; w < WIDTH; w++) {
            const vector now = first[w] + p.due[i] * steps[w];
            first[w] = now;
            even[w] += p.inputs[i] * now;
        }
        for (int w = 0; w < WIDTH; w++) {
            const vector now = second[w] + p.due[i + 1] * steps[w];
            second[w] = now;
            odd[w] += p.inputs[i + 1] * now;
        }
    }
    for (int w = 0; w < WIDTH; w++) reinterpret_cast<vector *>(p.worth + at)[w] = even[w] + odd[w];
}

// weights[rows][n] takes the step that is due, due[row] * step[e], and is then read: inputs[row] times it is added to worth[e].
template <int BYTES>
INLINED void read_weights(const weights_pass & p) {
    enum { FOUR_VECTORS = 4 * BYTES / 4, LANE_VECTORS = LANES * 4 / BYTES };
    int at = 0;
    for (; at + FOUR_VECTORS <= p.n; at += FOUR_VECTORS) read_column<BYTES, 4>(p, at);
    for (; at + 2 * LANES <= p.n; at += 2 * LANES) read_column<BYTES, 2 * LANE_VECTORS>(p, at);
    for (; at < p.n; at += LANES) read_column<BYTES, LANE_VECTORS>(p, at);
}
