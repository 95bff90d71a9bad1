// The reader of packed files on any bytes: checksums found in the metadata, and all that they cover.
#include "fuzz-input.h"

#include "model-checksums.h"
#include "model-pack.h"

#include <cstdlib>

std::vector<fuzz_bytes> fuzz_seeds() { return {fuzz_packed_model(false), fuzz_packed_model(true), fuzz_model(false)}; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string path = fuzz_file(data, size);
    check_result result;
    const engine_status status = model_check(path, nullptr, result);
    if (failed(status)) return 0;
    if (result.bytes > size || result.damaged.size() > result.damaged_count) abort();
    model_file file;
    model_checksums sums;
    if (failed(model_file_read(path, file)) || failed(model_checksums_read(file, sums))) abort();
    if (sums.experts.size() != file.layers.size() * size_t(file.info.experts)) abort();
    return 0;
}
