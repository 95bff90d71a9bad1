// Functions compiled once more for wider vectors, the widest that the processor has being chosen as the program starts. The same results
// everywhere: no sum is reordered by it, and nothing is fused (-ffp-contract=off).
#pragma once

// Whether a function may be compiled for several processors; AddressSanitizer does not take such functions.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define SEVERAL_TARGETS 1
#define WIDEST_VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define SEVERAL_TARGETS 0
#define WIDEST_VECTORS
#endif
