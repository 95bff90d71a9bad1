// Sums along rows and across them, in vectors of BYTES that stay in registers: compilers keep those of loops over arrays in memory. They are
// added up in an order that BYTES has no part in. Rows are whole_lanes long.
#pragma once

#include "widest-vectors.h"

#include <cstddef>

template <int BYTES> struct float_vector;
template <> struct float_vector<16> { typedef float type __attribute__((vector_size(16), aligned(4), may_alias)); };
template <> struct float_vector<32> { typedef float type __attribute__((vector_size(32), aligned(4), may_alias)); };
template <> struct float_vector<64> { typedef float type __attribute__((vector_size(64), aligned(4), may_alias)); };

// LANES floats.
template <int BYTES>
struct lane_vectors {
    typedef typename float_vector<BYTES>::type vector;
    enum { COUNT = LANES * int(sizeof(float)) / BYTES };
    vector part[COUNT];
};

template <int BYTES>
INLINED lane_vectors<BYTES> lanes_at(const float * x) {
    lane_vectors<BYTES> lanes;
    for (int i = 0; i < lanes.COUNT; i++) lanes.part[i] = reinterpret_cast<const typename float_vector<BYTES>::type *>(x)[i];
    return lanes;
}

struct add { template <class T> static T of(T a, T b) { return a + b; } };
struct higher { template <class T> static T of(T a, T b) { return b > a ? b : a; } };
struct lower { template <class T> static T of(T a, T b) { return b < a ? b : a; } };

// One half with the other until one is left.
template <class TAKE, class T>
INLINED T folded(T * lanes) {
    static_assert(LANES == 16, "as many halves");
    for (int i = 0; i < 8; i++) lanes[i] = TAKE::of(lanes[i], lanes[i + 8]);
    for (int i = 0; i < 4; i++) lanes[i] = TAKE::of(lanes[i], lanes[i + 4]);
    return TAKE::of(TAKE::of(lanes[0], lanes[2]), TAKE::of(lanes[1], lanes[3]));
}

template <class TAKE, int BYTES>
INLINED float folded(const lane_vectors<BYTES> & lanes) {
    float x[LANES];
    for (int i = 0; i < lanes.COUNT; i++) reinterpret_cast<typename float_vector<BYTES>::type *>(x)[i] = lanes.part[i];
    return folded<TAKE>(x);
}

template <int BYTES>
INLINED float sum_of(const float * x, int n) {
    lane_vectors<BYTES> sums = lanes_at<BYTES>(x);
    for (int at = LANES; at < n; at += LANES) {
        const lane_vectors<BYTES> more = lanes_at<BYTES>(x + at);
        for (int i = 0; i < sums.COUNT; i++) sums.part[i] += more.part[i];
    }
    return folded<add>(sums);
}

template <int BYTES>
INLINED float sum_of_products(const float * a, const float * b, int n) {
    lane_vectors<BYTES> sums = {};
    for (int at = 0; at < n; at += LANES) {
        const lane_vectors<BYTES> x = lanes_at<BYTES>(a + at), y = lanes_at<BYTES>(b + at);
        for (int i = 0; i < sums.COUNT; i++) sums.part[i] += x.part[i] * y.part[i];
    }
    return folded<add>(sums);
}

template <int BYTES>
INLINED float highest_of(const float * x, int n) {
    lane_vectors<BYTES> highest = lanes_at<BYTES>(x);
    for (int at = LANES; at < n; at += LANES) {
        const lane_vectors<BYTES> other = lanes_at<BYTES>(x + at);
        for (int i = 0; i < highest.COUNT; i++) highest.part[i] = other.part[i] > highest.part[i] ? other.part[i] : highest.part[i];
    }
    return folded<higher>(highest);
}
