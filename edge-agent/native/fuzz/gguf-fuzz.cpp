// The GGUF reader on any bytes: it answers with a status, and what it accepts is consistent.
#include "fuzz-input.h"

std::vector<fuzz_bytes> fuzz_seeds() { return {fuzz_model(false), fuzz_model(true), fuzz_packed_model(false)}; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    model_file file;
    if (!failed(model_file_read(fuzz_file(data, size), file))) fuzz_check_model(file, size);
    return 0;
}
