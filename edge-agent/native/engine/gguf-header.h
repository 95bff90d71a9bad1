// Bounds-checked reading of a GGUF header, before llama.cpp sees the file. Its bytes are untrusted: every count is
// checked against the bytes that are left before anything is sized by it, every size for overflow, every tensor
// against the end of the file. Format: the GGUF specification, versions 2 and 3, little endian.
#pragma once

#include "status.h"

#include <map>
#include <string>
#include <vector>

struct gguf_value {
    enum kind_t { INTEGER, REAL, TEXT, ARRAY } kind = INTEGER;
    int64_t integer = 0;
    double real = 0;
    std::string text;
    uint64_t count = 0;              // of an array
    uint32_t element_type = 0;       // of an array: gguf_type
    uint64_t at = 0;                 // of an array of numbers: where its elements lie in the file
    std::vector<int64_t> integers;   // of an array of at most GGUF_SMALL_ARRAY integers
};
enum { GGUF_SMALL_ARRAY = 4096 };

struct gguf_tensor {
    std::string name;
    int32_t type = 0;     // ggml_type
    int32_t dims = 0;
    int64_t ne[4] = {1, 1, 1, 1};
    uint64_t offset = 0;  // from the start of the file
    uint64_t bytes = 0;
    uint64_t row_bytes = 0;
};

struct gguf_header {
    uint64_t file_bytes = 0;
    uint64_t data_offset = 0;
    uint64_t alignment = 32;
    std::map<std::string, gguf_value> values;
    std::vector<gguf_tensor> tensors;  // in file order of their descriptions
};

// The same of an open file that is `file_bytes` long, or will be. `path` is for messages.
engine_status gguf_header_read_from(int fd, uint64_t file_bytes, const std::string & path, gguf_header & out);

// MODEL_FORMAT, IO.
engine_status gguf_header_read(const std::string & path, gguf_header & out);

// Null where the key is missing or of another kind.
const int64_t * gguf_find_integer(const gguf_header & h, const std::string & key);
const std::string * gguf_find_text(const gguf_header & h, const std::string & key);
