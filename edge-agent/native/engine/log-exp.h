// Logarithms and exponentials of floats, a block at a time, so that all but the looking up becomes vectors; and exponentials of
// doubles. The same bits on every processor and with every libc, as nothing is fused; those of floats are glibc's, save one in a billion
// where its own version fuses.
//
// After logf and expf of Arm's optimized-routines, without their special cases (copyright 2017-2018 Arm Limited, MIT or Apache-2.0 with
// LLVM exception).
#pragma once

#include <cstdint>
#include <cstring>

enum { LOG_EXP_BLOCK = 32 };

struct log_piece { double inverse, log; };  // of a point near the middle of each sixteenth

static const log_piece LOG_PIECES[16] = {
    {0x1.661ec79f8f3bep+0, -0x1.57bf7808caadep-2}, {0x1.571ed4aaf883dp+0, -0x1.2bef0a7c06ddbp-2},
    {0x1.49539f0f010bp+0, -0x1.01eae7f513a67p-2}, {0x1.3c995b0b80385p+0, -0x1.b31d8a68224e9p-3},
    {0x1.30d190c8864a5p+0, -0x1.6574f0ac07758p-3}, {0x1.25e227b0b8eap+0, -0x1.1aa2bc79c81p-3},
    {0x1.1bb4a4a1a343fp+0, -0x1.a4e76ce8c0e5ep-4}, {0x1.12358f08ae5bap+0, -0x1.1973c5a611cccp-4},
    {0x1.0953f419900a7p+0, -0x1.252f438e10c1ep-5}, {0x1p+0, 0x0p+0},
    {0x1.e608cfd9a47acp-1, 0x1.aa5aa5df25984p-5}, {0x1.ca4b31f026aap-1, 0x1.c5e53aa362eb4p-4},
    {0x1.b2036576afce6p-1, 0x1.526e57720db08p-3}, {0x1.9c2d163a1aa2dp-1, 0x1.bc2860d22477p-3},
    {0x1.886e6037841edp-1, 0x1.1058bc8a07ee1p-2}, {0x1.767dcf5534862p-1, 0x1.4043057b6ee09p-2},
};

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

// In place, of positive finite values that are not denormal.
__attribute__((always_inline)) static inline void log_block(float * x) {
    double inverse[LOG_EXP_BLOCK], log[LOG_EXP_BLOCK];
    uint32_t above[LOG_EXP_BLOCK];
    for (int i = 0; i < LOG_EXP_BLOCK; i++) above[i] = bits_as<uint32_t>(x[i]) - 0x3f330000u;
    for (int i = 0; i < LOG_EXP_BLOCK; i++) {
        const log_piece & piece = LOG_PIECES[(above[i] >> 19) % 16];
        inverse[i] = piece.inverse;
        log[i] = piece.log;
    }
    for (int i = 0; i < LOG_EXP_BLOCK; i++) {
        const float scaled = bits_as<float>(bits_as<uint32_t>(x[i]) - (above[i] & 0xff800000u));
        const double r = double(scaled) * inverse[i] - 1, r2 = r * r;
        const double y = (-0x1.00ea348b88334p-2 * r2 + (0x1.5575b0be00b6ap-2 * r + -0x1.ffffef20a4123p-2)) * r2;
        x[i] = float(y + (log[i] + double(int32_t(above[i]) >> 23) * 0x1.62e42fefa39efp-1 + r));
    }
}

// In place, of values from -700 to 88.
__attribute__((always_inline)) static inline void exp_block(float * x) {
    const double rounding = 0x1.8p+52;  // leaves the nearest integer in the low bits
    double rest[LOG_EXP_BLOCK];
    uint64_t n[LOG_EXP_BLOCK], piece[LOG_EXP_BLOCK];
    for (int i = 0; i < LOG_EXP_BLOCK; i++) {
        const double z = 0x1.71547652b82fep+5 * double(x[i]), nearest = z + rounding;
        n[i] = bits_as<uint64_t>(nearest);
        rest[i] = z - (nearest - rounding);
    }
    for (int i = 0; i < LOG_EXP_BLOCK; i++) piece[i] = EXP_PIECES[n[i] % 32];
    for (int i = 0; i < LOG_EXP_BLOCK; i++) {
        const double r = rest[i], power = bits_as<double>(piece[i] + (n[i] << 47));
        x[i] = float(((0x1.c6af84b912394p-20 * r + 0x1.ebfce50fac4f3p-13) * (r * r) + (0x1.62e42ff0c52d6p-6 * r + 1)) * power);
    }
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
