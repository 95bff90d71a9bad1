// Functions compiled once more for wider vectors, the widest that the processor has being chosen as the program starts. The same results
// everywhere: no sum is reordered by it, and nothing is fused (-ffp-contract=off).
#pragma once

// Whether a function may be compiled for several processors; AddressSanitizer does not take such functions.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define WIDEST_VECTORS __attribute__((target_clones("avx2", "default")))
// Defines NAME: what BODY<the bytes of the processor's vectors> does. For bodies that choose their vectors themselves, as those wider than
// the processor's are slow.
#define IN_WIDEST_VECTORS(RESULT, NAME, PARAMETERS, BODY, ARGUMENTS)                         \
    __attribute__((target("default"))) RESULT NAME PARAMETERS { return BODY<16> ARGUMENTS; } \
    __attribute__((target("avx2"))) RESULT NAME PARAMETERS { return BODY<32> ARGUMENTS; }    \
    __attribute__((target("avx512f"))) RESULT NAME PARAMETERS { return BODY<64> ARGUMENTS; }
#else
#define WIDEST_VECTORS
#define IN_WIDEST_VECTORS(RESULT, NAME, PARAMETERS, BODY, ARGUMENTS) \
    RESULT NAME PARAMETERS { return BODY<16> ARGUMENTS; }
#endif

// Part of every function that calls it, so compiled for what that one is compiled for.
#define INLINED __attribute__((always_inline)) static inline

enum { LANES = 16 };  // of all sums and comparisons, however wide the processor's vectors are
// The length of a row of `n` that is filled up, so that nothing is left over when it is gone through by lanes.
static inline int whole_lanes(int n) { return (n + LANES - 1) / LANES * LANES; }
