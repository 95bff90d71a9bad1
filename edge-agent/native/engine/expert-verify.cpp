#include "expert-verify.h"

#include "file-descriptor.h"
#include "file-read.h"

#include <algorithm>
#include <fcntl.h>

#define NEXT_STEP "fetch the file again, or check the disk"

bool expert_verify_some(expert_digesting & d, const model_checksums & checksums, const expert_memory & memory, const model_info & info, int layer,
                        int expert, uint64_t & budget, engine_status & out) {
    const layer_memory & places = memory.layers[size_t(layer)];
    if (d.place < 0) {
        sha256_start(d.stream);
        d.place = 0;
        d.done = 0;
    }
    // In the order of the digests: places are made from a layer's matrices.
    while (d.place < places.n_places && budget > 0) {
        const expert_place & place = places.places[d.place];
        const uint64_t part = std::min(budget, place.bytes - d.done);
        sha256_add(d.stream, place.base + uint64_t(expert) * place.bytes + d.done, size_t(part));
        budget -= part;
        d.done += part;
        if (d.done < place.bytes) break;
        d.place++;
        d.done = 0;
    }
    if (d.place < places.n_places) return false;
    sha256_digest found;
    sha256_end(d.stream, found.data());
    d.place = -1;
    const bool right = found == checksums.experts[size_t(layer) * size_t(info.experts) + size_t(expert)];
    out = right ? engine_status() : status_error(ENGINE_IO, "blk.%d expert %d: checksum mismatch in %s; " NEXT_STEP, info.moe_layers[size_t(layer)], expert, info.path.c_str());
    return true;
}

engine_status expert_verify(const model_checksums & checksums, const expert_memory & memory, const model_info & info, int layer, int expert) {
    expert_digesting d;
    engine_status status;
    uint64_t budget = UINT64_MAX;
    expert_verify_some(d, checksums, memory, info, layer, expert, budget, status);
    return status;
}

static engine_status tensor_verify(int fd, const model_file & file, const gguf_tensor & t, const sha256_digest & expected, std::vector<char> & buffer) {
    sha256_stream stream;
    sha256_start(stream);
    for (uint64_t done = 0; done < t.bytes;) {
        const size_t part = size_t(std::min<uint64_t>(buffer.size(), t.bytes - done));
        const int error = file_read(fd, buffer.data(), part, t.offset + done);
        if (error) return file_read_failed(file.info.path, error);
        sha256_add(stream, buffer.data(), part);
        done += part;
    }
    sha256_digest found;
    sha256_end(stream, found.data());
    if (found == expected) return {};
    return status_error(ENGINE_IO, "%s: checksum mismatch in %s; " NEXT_STEP, t.name.c_str(), file.info.path.c_str());
}

engine_status dense_verify(const model_file & file, const model_checksums & checksums, bool (*cancelled)(void *), void * cancelled_data) {
    const file_descriptor in(open(file.info.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (in.fd < 0) return status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(errno));
    sha256_digest header;
    engine_status status = model_header_digest(in.fd, file, header);
    if (failed(status)) return status;
    if (header != checksums.header) return status_error(ENGINE_IO, "the header: checksum mismatch in %s; " NEXT_STEP, file.info.path.c_str());
    const auto tensors = checksums_dense_tensors(file);
    std::vector<char> buffer(4 << 20);
    for (size_t i = 0; i < tensors.size(); i++) {
        int32_t block;
        std::string kind;
        if (expert_tensor_name(tensors[i]->name, block, kind)) continue;  // of a layer that is not run: never read
        if (cancelled && cancelled(cancelled_data)) return status_error(ENGINE_CANCELLED, "loading was cancelled");
        status = tensor_verify(in.fd, file, *tensors[i], checksums.dense[i], buffer);
        if (failed(status)) return status;
    }
    return {};
}
