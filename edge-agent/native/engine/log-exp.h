// Logarithms and exponentials that are the same bits on every processor and with every libc, as nothing is fused and nothing looked up: those
// of floats good enough to rank by, those of doubles to two in the last place, for what is reported. Loops over them become vectors.
#pragma once

#include <cstdint>
#include <cstring>

// The same bits as another type.
template <class To, class From>
static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

// The polynomials of the two of floats are minimax (Remez).

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

// Of a value from -700 to 700; off by two in the last place at most. Taylor's series up to the twelfth power.
static inline double exp_of(double x) {
    const double rounding = 0x1.8p+52, nearest = 0x1.71547652b82fep+0 * x + rounding, whole = nearest - rounding;
    const double r = (x - whole * 0x1.62e42feep-1) - whole * 0x1.a39ef35793c76p-33, r2 = r * r;
    const double last = (1.0 / 479001600 * r + 1.0 / 39916800) * r + 1.0 / 3628800;
    const double high = (1.0 / 40320 + 1.0 / 362880 * r) + r2 * last, middle = (1.0 / 720 + 1.0 / 5040 * r) + r2 * high;
    const double rest = (1.0 / 2 + 1.0 / 6 * r) + r2 * ((1.0 / 24 + 1.0 / 120 * r) + r2 * middle);
    return bits_as<double>(bits_as<uint64_t>(1 + (r + r2 * rest)) + (bits_as<uint64_t>(nearest) << 52));
}
