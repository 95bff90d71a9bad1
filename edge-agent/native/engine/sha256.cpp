#include "sha256.h"

extern "C" {
#include "sha256/sha256.h"
}

#include <cstring>
#include <dlfcn.h>

namespace {

// The low-level functions of OpenSSL 1.1, 3 and BoringSSL: unlike the newer ones they keep all state with the caller.
// Their SHA256_CTX is 112 bytes.
struct fast_functions {
    int (*init)(void *) = nullptr;
    int (*update)(void *, const void *, size_t) = nullptr;
    int (*final)(unsigned char *, void *) = nullptr;
};

// Whoever else exports functions of these names must give the digest of "abc" (FIPS 180-4, appendix B.1) to be used.
bool works(const fast_functions & f) {
    const uint8_t expected[4] = {0xba, 0x78, 0x16, 0xbf};
    alignas(16) unsigned char state[sizeof(sha256_stream::state)];
    uint8_t digest[SHA256_BYTES] = {};
    if (!f.init || !f.update || !f.final) return false;
    if (f.init(state) != 1 || f.update(state, "abc", 3) != 1 || f.final(digest, state) != 1) return false;
    return memcmp(digest, expected, sizeof(expected)) == 0;
}

template <typename F> void find(F & function, const char * name) { function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name)); }

const fast_functions & fast() {
    static const fast_functions found = [] {
        fast_functions f;
        find(f.init, "SHA256_Init");
        find(f.update, "SHA256_Update");
        find(f.final, "SHA256_Final");
        return works(f) ? f : fast_functions();
    }();
    return found;
}

sha256_t & portable(sha256_stream & s) { return *reinterpret_cast<sha256_t *>(s.state); }

}  // namespace

static_assert(sizeof(sha256_t) <= sizeof(sha256_stream::state), "the state does not fit");

void sha256_start(sha256_stream & s) {
    s.fast = fast().init != nullptr && fast().init(s.state) == 1;
    if (!s.fast) sha256_start_portable(s);
}

void sha256_start_portable(sha256_stream & s) {
    s.fast = false;
    sha256_init(&portable(s));
}

void sha256_add(sha256_stream & s, const void * data, size_t n) {
    if (s.fast) fast().update(s.state, data, n);
    else sha256_update(&portable(s), static_cast<const unsigned char *>(data), n);
}

void sha256_end(sha256_stream & s, uint8_t out[SHA256_BYTES]) {
    if (s.fast) fast().final(out, s.state);
    else sha256_final(&portable(s), out);
}
