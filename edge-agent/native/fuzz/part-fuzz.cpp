// Packing beside any `.part`: whatever an earlier attempt, or anyone else, left there, the result is the same.
#include "fuzz-input.h"

#include "model-pack.h"

#include <cstdlib>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>

std::vector<fuzz_bytes> fuzz_seeds() {
    fuzz_bytes whole = fuzz_packed_model(false), other = fuzz_packed_model(true);
    fuzz_bytes half(whole.begin(), whole.begin() + std::ptrdiff_t(whole.size() / 2));
    return {whole, other, half, {}};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const std::string folder = [] {
        // Its disk must not be one: every run ends with an fsync.
        char name[] = "/dev/shm/moefleet-fuzz-XXXXXX";
        if (!mkdtemp(name)) abort();
        return std::string(name);
    }();
    static const fuzz_bytes source = fuzz_model(false), expected = fuzz_packed_model(false);
    static const std::string model = folder + "/source.gguf", target = folder + "/target.gguf";
    static const bool written = (fuzz_write(model, source.data(), source.size()), true);
    (void) written;
    fuzz_write(target + ".part", data, size);
    write_result result;
    const engine_status status = model_pack(model, target, true, nullptr, result);
    if (failed(status) || result.kept > std::min(size, expected.size()) || fuzz_read(target) != expected) abort();
    return 0;
}
