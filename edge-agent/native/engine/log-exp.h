// Logarithms and exponentials that are the same bits on every processor and with every libc, as nothing is fused: those of floats for loops
// that become vectors, good enough to rank by, and those of doubles to two in the last place, for what is reported.
//
// The doubles are after expf of Arm's optimized-routines (copyright 2017-2018 Arm Limited, MIT or Apache-2.0 with LLVM exception). The
// polynomials of the floats are minimax (Remez).
#pragma once

#include <cstdint>
#include <cstring>

// The bits of 2^(i/32), less i in the place that a power of 2^(1/32) is added to.
static const uint64_t EXP_PIECES[32] = {
    0x3ff0000000000000, 0x3fefd9b0d3158574, 0x3fefb5586cf9890f, 0x3fef9301d0125b51, 0x3fef72b83c7d517b, 0x3fef54873168b9aa,
    0x3fef387a6e756238, 0x3fef1e9df51fdee1, 0x3fef06fe0a31b715, 0x3feef1a7373aa9cb, 0x3feedea64c123422, 0x3feece086061892d,
    0x3feebfdad5362a27, 0x3feeb42b569d4f82, 0x3feeab07dd485429, 0x3feea47eb03a5585, 0x3feea09e667f3bcd, 0x3fee9f75e8ec5f74,
    0x3feea11473eb0187, 0x3feea589994cce13, 0x3feeace5422aa0db, 0x3feeb737b0cdc5e5, 0x3feec49182a3f090, 0x3feed503b23e255d,
    0x3feee89f995ad3ad, 0x3feeff76f2fb5e47, 0x3fef199bdd85529c, 0x3fef3720dcef9069, 0x3fef5818dcfba487, 0x3fef7c97337b9b5f,
    0x3fefa4afa2a490da, 0x3fefd0765b6e4540,
};

// The same bits as another type.
template <class To, class From>
static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

// Of a positive finite value that is not denormal; off by 1e-7 and 2e-7 of itself at most.
static inline float quick_log(float x) {
    const uint32_t above = bits_as<uint32_t>(x) - 0x3f3504f3u;  // the root of a half; its exponent is that of the power of two nearby
    const float f = bits_as<float>(bits_as<uint32_t>(x) - (above & 0xff800000u)) - 1, f2 = f * f;
    const float low = -0x1.0000c4p-1f + 0x1.555a64p-2f * f, middle = -0x1.ff35f8p-3f + 0x1.974fdap-3f * f, high = -0x1.62d61cp-3f + 0x1.4e8dccp-3f * f;
    const float rest = f2 * (low + f2 * (middle + f2 * (high + f2 * -0x1.9b049p-4f)));
    return float(int32_t(above) >> 23) * 0x1.62e43p-1f + (f + rest);
}

// Of a value from -87 to 88; off by 2e-7 of itself at most.
static inline float quick_exp(float x) {
    const float rounding = 0x1.8p+23f, nearest = 0x1.715476p+0f * x + rounding, whole = nearest - rounding;
    const float r = (x - whole * 0x1.62ep-1f) - whole * 0x1.0bfbe8p-15f, r2 = r * r;  // ln 2 in two; whole numbers times the first are exact
    const float rest = (0x1.fffffcp-2f + 0x1.555492p-3f * r) + r2 * ((0x1.55591p-5f + 0x1.1239d4p-7f * r) + r2 * 0x1.6a244cp-10f);
    return bits_as<float>(bits_as<uint32_t>(1 + (r + r2 * rest)) + (bits_as<uint32_t>(nearest) << 23));
}

// In place, of COUNT values from -700 to 700, to within two in the last place. What the pieces leave, 0.0108 at most, goes into Taylor's
// series up to the sixth power.
template <int COUNT>
__attribute__((always_inline)) static inline void exp_doubles(double * x) {
    const double rounding = 0x1.8p+52, upper = 0x1.62e42feep-6, lower = 0x1.a39ef35793c76p-38;  // of ln 2 / 32; whole numbers times the upper are exact
    uint64_t n[COUNT], piece[COUNT];
    for (int i = 0; i < COUNT; i++) {
        const double nearest = 0x1.71547652b82fep+5 * x[i] + rounding, whole = nearest - rounding;
        n[i] = bits_as<uint64_t>(nearest);
        x[i] = (x[i] - whole * upper) - whole * lower;
    }
    for (int i = 0; i < COUNT; i++) piece[i] = EXP_PIECES[n[i] % 32];
    for (int i = 0; i < COUNT; i++) {
        const double r = x[i], r2 = r * r, power = bits_as<double>(piece[i] + (n[i] << 47));
        const double rest = r + r2 * ((1.0 / 2 + 1.0 / 6 * r) + r2 * ((1.0 / 24 + 1.0 / 120 * r) + r2 * (1.0 / 720)));
        x[i] = power + power * rest;
    }
}

static inline double exp_of(double x) {
    exp_doubles<1>(&x);
    return x;
}
