// A model in several files, as llama-gguf-split writes them: name-00001-of-00003.gguf and so on. The first holds the
// metadata, each the description and the data of its own tensors.
//
// A place in such a model is one number, its position: the file's index in the upper 16 bits, the offset in that file
// below. Positions within one tensor are as consecutive as offsets, and in a model of one file they are the offsets.
#pragma once

#include "file-descriptor.h"
#include "gguf-header.h"

#include "ggml.h"
#include "gguf.h"

#include <memory>

enum { POSITION_OFFSET_BITS = 48, MOST_SHARDS = 1 << 16 };

inline size_t position_file(uint64_t position) { return size_t(position >> POSITION_OFFSET_BITS); }
inline uint64_t position_offset(uint64_t position) { return position & ((uint64_t(1) << POSITION_OFFSET_BITS) - 1); }

// Given the header of the first file, adds the tensors of the others to it, all with positions for offsets, and lists the
// files. `header.file_bytes` becomes the sum. A model of one file stays as it is. MODEL_FORMAT (another file than the
// first was given, the files do not belong together), IO (a file is missing).
engine_status model_shards_read(const std::string & path, gguf_header & header, std::vector<std::string> & files);

struct free_gguf { void operator()(gguf_context * g) const { gguf_free(g); } };
struct free_ggml { void operator()(ggml_context * c) const { ggml_free(c); } };
using gguf_ptr = std::unique_ptr<gguf_context, free_gguf>;
using ggml_ptr = std::unique_ptr<ggml_context, free_ggml>;

// The same as ggml reads it: the first file's metadata, the tensors of all. Null where ggml cannot read a file.
gguf_ptr model_shards_metadata(const std::vector<std::string> & files);

// The files of a model, open for reading.
struct model_files {
    std::vector<file_descriptor> files;
};

// IO.
engine_status model_files_open(model_files & m, const std::vector<std::string> & paths);
// As file_read.
int model_files_read(const model_files & m, void * to, size_t n, uint64_t position);
