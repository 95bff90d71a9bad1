// Writes a model file made from another: the part that pack, widen and quantize share. The new file is a GGUF that the
// stock library loads, with the source's metadata, tensors aligned to 4096, tensors other than experts first, then the
// experts layer by layer, and the digests of model-checksums.h.
//
// Bytes go to `<target>.part`, which is renamed when all of it, digests included, is on the disk; so `target` is never
// half a file. A `.part` that is there already is gone on with: what it holds is compared, byte for byte, with what
// would be written, and written from the first difference on. The same call always produces the same bytes.
#pragma once

#include "file-descriptor.h"
#include "model-checksums.h"

#include "gguf.h"

#include <memory>

enum { WRITE_ALIGNMENT = 4096 };

// One tensor of the new file, in the order of the new file.
struct planned_tensor {
    const gguf_tensor * source = nullptr;
    ggml_type type = GGML_TYPE_COUNT;
    int64_t ne[4] = {1, 1, 1, 1};
    int layer = -1;          // index of the MoE layer whose expert matrix it is; -1: any other tensor
    std::string kind;        // "gate", "up", "down", "gate_up" of an expert matrix
    uint64_t bytes = 0;      // filled in by model_write
    bool last_of_layer = false;
};

struct model_writing {
    model_file file;                        // the source
    std::string target, part;
    bool replace = false;                   // an existing target
    std::vector<planned_tensor> tensors;    // types and shapes may be changed between begin and run
    gguf_ptr metadata;                      // likewise
    const progress_callback * progress = nullptr;
    model_files in;
    file_descriptor out;
    uint64_t written = 0, total = 0, reported = 0, synced = 0;
    uint64_t kept = 0;                      // bytes of an earlier attempt that were compared so far and stay
    uint64_t kept_end = 0;                  // where the earlier attempt ended
    std::vector<char> buffer, compare;
    std::vector<char> pending;              // bytes after `written` that are not in the file yet
    gguf_header made;                       // the new header, as read back

    // digests of the new file; `expected`: what the tensors must come to, empty where nothing is known
    model_checksums checksums, expected;
    std::vector<sha256_stream> streams;     // of the layer being written, per expert; or one
    uint64_t tensor_written = 0;
    const planned_tensor * current = nullptr;
};

// Reads the source and plans a copy of it. BAD_ARGUMENT (the target exists), MODEL_FORMAT, NOT_MOE, IO.
engine_status model_write_begin(model_writing & w, const std::string & source, const std::string & target, bool replace,
                                const progress_callback & progress);

// Puts all bytes of one tensor, in order.
using tensor_producer = std::function<engine_status(model_writing & w, const planned_tensor & t)>;

// Writes the file. MODEL_FORMAT (not as `expected`), IO (disk full, with what is missing), BUSY (another process writes it), CANCELLED.
engine_status model_write_run(model_writing & w, const tensor_producer & produce);

// For producers: appends bytes; reads bytes of the source; reads and appends them.
engine_status model_write_put(model_writing & w, const void * data, size_t n);
engine_status model_write_read(const model_writing & w, uint64_t source_offset, uint64_t n, std::vector<char> & out);
engine_status model_write_copy(model_writing & w, uint64_t source_offset, uint64_t n);
// A producer: the tensor as it is in the source.
engine_status model_write_same(model_writing & w, const planned_tensor & t);
