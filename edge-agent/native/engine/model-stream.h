// A model as a C stream of one GGUF file that passes over the experts: their bytes are neither read nor written anywhere.
// The C library still copies its buffer to where an expert tensor lies, so the stream gives those pages back behind it. A
// model in several files is served as one: a header that describes all tensors, then each from its own file.
#pragma once

#include "expert-memory.h"
#include "file-descriptor.h"

#include <cstdio>

struct passed_range {
    uint64_t begin, end;   // in the stream
    const expert_place * place;  // where llama.cpp copies it to; null for experts the engine does not run
};

// What the stream is made of; zeros fill the gaps.
struct stream_piece {
    uint64_t begin, end;   // in the stream
    uint64_t position;     // of its first byte in the model's files
};

struct model_stream {
    model_files files;
    std::vector<char> header;           // of a model in several files, from byte 0 on; empty where the file's own serves
    std::vector<stream_piece> pieces;   // ascending, apart
    uint64_t at = 0, bytes = 0;
    std::vector<passed_range> experts;  // ascending, apart
    std::vector<char> buffer;
    size_t page = 4096;
    engine_status status;               // of a read that failed
    const model_file * model = nullptr;
};

// Null with the stream's status set. `stream` and `file` must outlive the handle; the caller closes the handle.
FILE * model_stream_open(model_stream & stream, const model_file & file, const expert_memory & memory);
