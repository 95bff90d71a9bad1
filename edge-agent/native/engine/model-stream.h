// A model file as a C stream that passes over the experts: their bytes are neither read nor written anywhere. The C
// library still copies its buffer to where an expert tensor lies, so the stream gives those pages back behind it.
#pragma once

#include "expert-memory.h"
#include "file-descriptor.h"

#include <cstdio>

struct passed_range {
    uint64_t begin, end;   // in the file
    const expert_place * place;  // where llama.cpp copies it to; null for experts the engine does not run
};

struct model_stream {
    file_descriptor file;
    uint64_t at = 0, bytes = 0;
    std::vector<passed_range> experts;  // ascending, apart
    std::vector<char> buffer;
    size_t page = 4096;
    int error = 0;
};

// Null with errno set. `stream` must outlive the handle; the caller closes the handle.
FILE * model_stream_open(model_stream & stream, const model_file & file, const expert_memory & memory);
