// SHA-256 of a stream of bytes (FIPS 180-4). Never allocates, so it may be used on the way of a miss.
//
// Two implementations, neither of them ours: the OpenSSL that Node itself exports to addons, which uses the processor's
// SHA instructions (1.8 GB/s on the machine this was written on), and where the process has none, as in the C++ tests,
// the portable one that llama.cpp ships (0.29 GB/s there).
#pragma once

#include <cstddef>
#include <cstdint>

enum { SHA256_BYTES = 32 };

struct sha256_stream {
    alignas(16) unsigned char state[128];  // of either implementation
    bool fast;
};

void sha256_start(sha256_stream & s);
// Portable whatever the process has; for tests.
void sha256_start_portable(sha256_stream & s);
void sha256_add(sha256_stream & s, const void * data, size_t n);
void sha256_end(sha256_stream & s, uint8_t out[SHA256_BYTES]);
