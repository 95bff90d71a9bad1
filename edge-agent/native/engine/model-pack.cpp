#include "model-pack.h"

#include "file-read.h"
#include "model-write.h"

#include <algorithm>
#include <fcntl.h>

namespace {

const size_t READ_BYTES = 4 << 20;
// A file that is damaged all over is described well enough by so many.
const size_t MOST_DAMAGED = 1000;

struct checking {
    model_file file;
    model_checksums checksums;
    file_descriptor in;
    const progress_callback * progress = nullptr;
    check_result * out = nullptr;
    uint64_t total = 0;
    std::vector<char> buffer;
};

engine_status add_range(checking & c, sha256_stream & stream, uint64_t offset, uint64_t n, bool & readable) {
    while (n > 0) {
        const size_t part = size_t(std::min<uint64_t>(n, READ_BYTES));
        const int error = file_read(c.in.fd, c.buffer.data(), part, offset);
        readable = readable && error == 0;
        if (error == 0) sha256_add(stream, c.buffer.data(), part);
        offset += part;
        n -= part;
        c.out->bytes += part;
        if (*c.progress && !(*c.progress)(int64_t(c.out->bytes), int64_t(c.total))) {
            return status_error(ENGINE_CANCELLED, "%s: cancelled", c.file.info.path.c_str());
        }
    }
    return {};
}

void compare(checking & c, sha256_stream & stream, const sha256_digest & expected, bool readable, const std::string & what) {
    sha256_digest found;
    sha256_end(stream, found.data());
    if (readable && found == expected) return;
    c.out->damaged_count++;
    if (c.out->damaged.size() < MOST_DAMAGED) c.out->damaged.push_back(what);
}

engine_status check_dense(checking & c) {
    const auto tensors = checksums_dense_tensors(c.file);
    for (size_t i = 0; i < tensors.size(); i++) {
        sha256_stream stream;
        sha256_start(stream);
        bool readable = true;
        const engine_status status = add_range(c, stream, tensors[i]->offset, tensors[i]->bytes, readable);
        if (failed(status)) return status;
        compare(c, stream, c.checksums.dense[i], readable, tensors[i]->name);
    }
    return {};
}

engine_status check_experts(checking & c) {
    const size_t experts = size_t(c.file.info.experts);
    for (size_t l = 0; l < c.file.layers.size(); l++) {
        for (size_t e = 0; e < experts; e++) {
            sha256_stream stream;
            sha256_start(stream);
            bool readable = true;
            for (const auto & m : c.file.layers[l].matrices) {
                const engine_status status = add_range(c, stream, m.offset + e * m.expert_bytes, m.expert_bytes, readable);
                if (failed(status)) return status;
            }
            compare(c, stream, c.checksums.experts[l * experts + e], readable,
                    "blk." + std::to_string(c.file.layers[l].block) + " expert " + std::to_string(e));
        }
    }
    return {};
}

}  // namespace

engine_status model_pack(const std::string & source, const std::string & target, bool replace, const progress_callback & progress, write_result & out) {
    model_writing w;
    engine_status status = model_write_begin(w, source, target, replace, progress);
    // What is packed already keeps its digests; new ones would make damage look right.
    if (!failed(status) && w.file.info.pack_version != 0) status = model_checksums_read(w.file, w.expected);
    if (!failed(status)) status = model_write_run(w, model_write_same);
    out = {w.written, w.kept};
    return status;
}

engine_status model_check(const std::string & path, const progress_callback & progress, check_result & out) {
    checking c;
    c.progress = &progress;
    c.out = &out;
    out = check_result();
    engine_status status = model_file_read(path, c.file);
    if (!failed(status)) status = model_checksums_read(c.file, c.checksums);
    if (failed(status)) return status;
    c.in = file_descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (c.in.fd < 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    c.buffer.resize(READ_BYTES);
    for (const auto & t : c.file.header.tensors) c.total += t.bytes;
    sha256_digest header;
    status = model_header_digest(c.in.fd, c.file, header);
    if (failed(status)) return status;
    if (header != c.checksums.header) {
        out.damaged_count++;
        out.damaged.push_back("the header");
    }
    status = check_dense(c);
    return failed(status) ? status : check_experts(c);
}
