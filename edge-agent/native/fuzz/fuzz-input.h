// What the fuzz targets share: their input as a file, small valid models to start from, and what must hold of any model
// that a reader accepts. A violated claim aborts, which is what a fuzzer looks for.
#pragma once

#include "model-file.h"

#include <cstdint>
#include <string>
#include <vector>

using fuzz_bytes = std::vector<uint8_t>;

// In each target: valid inputs to mutate.
std::vector<fuzz_bytes> fuzz_seeds();

// The bytes as a file in memory; the path is good until the next call.
std::string fuzz_file(const uint8_t * data, size_t size);

// A model of a few kilobytes: a dense block and two MoE blocks of 4 experts, split or merged gate and up matrices.
fuzz_bytes fuzz_model(bool merged);
// The same, packed.
fuzz_bytes fuzz_packed_model(bool merged);

fuzz_bytes fuzz_read(const std::string & path);
void fuzz_write(const std::string & path, const uint8_t * data, size_t size);

void fuzz_check_model(const model_file & file, size_t size);
