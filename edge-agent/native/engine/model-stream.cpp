#include "model-stream.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>

namespace {

// What the C library copies at once, and how far the pages given back lag behind.
const size_t BUFFER_BYTES = 1 << 20;

// The first expert range that ends after `at`.
const passed_range * range_from(const model_stream & s, uint64_t at) {
    const auto found = std::upper_bound(s.experts.begin(), s.experts.end(), at,
                                        [](uint64_t position, const passed_range & r) { return position < r.end; });
    return found == s.experts.end() ? nullptr : &*found;
}

// Everything of the range before `at` has been copied to its place by now.
void give_back(const model_stream & s, const passed_range & range, uint64_t at) {
    if (!range.place || !range.place->base) return;
    const uint64_t done = (at - range.begin) / s.page * s.page;
    const uint64_t from = done > 2 * BUFFER_BYTES ? (done - 2 * BUFFER_BYTES) / s.page * s.page : 0;
    if (done > from) madvise(range.place->base + from, done - from, MADV_DONTNEED);
}

ssize_t stream_read(void * cookie, char * to, size_t n) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    n = size_t(std::min<uint64_t>(n, s.bytes - std::min(s.at, s.bytes)));
    size_t done = 0;
    while (done < n) {
        const passed_range * range = range_from(s, s.at);
        if (range && s.at >= range->begin) {
            give_back(s, *range, s.at);
            const uint64_t part = std::min<uint64_t>(n - done, range->end - s.at);
            s.at += part;
            done += size_t(part);
            continue;
        }
        const uint64_t until = range ? range->begin - s.at : UINT64_MAX;
        const ssize_t got = pread(s.file.fd, to + done, size_t(std::min<uint64_t>(n - done, until)), off_t(s.at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            s.error = got < 0 ? errno : EIO;
            return -1;
        }
        s.at += uint64_t(got);
        done += size_t(got);
    }
    return ssize_t(done);
}

int stream_seek(void * cookie, off64_t * offset, int whence) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? int64_t(s.at) : int64_t(s.bytes);
    if (base + *offset < 0) return -1;
    s.at = uint64_t(base + *offset);
    *offset = off64_t(s.at);
    return 0;
}

const expert_place * place_of(const expert_memory & memory, const std::string & tensor) {
    for (const auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            if (tensor == layer.places[i].tensor) return &layer.places[i];
        }
    }
    return nullptr;
}

}  // namespace

FILE * model_stream_open(model_stream & stream, const model_file & file, const expert_memory & memory) {
    stream.file = file_descriptor(open(file.info.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (stream.file.fd < 0) return nullptr;
    stream.bytes = file.info.file_bytes;
    stream.page = memory.page;
    for (const auto & t : file.header.tensors) {
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) stream.experts.push_back({t.offset, t.offset + t.bytes, place_of(memory, t.name)});
    }
    std::sort(stream.experts.begin(), stream.experts.end(), [](const auto & a, const auto & b) { return a.begin < b.begin; });
    cookie_io_functions_t functions = {};
    functions.read = stream_read;
    functions.seek = stream_seek;
    FILE * handle = fopencookie(&stream, "rb", functions);
    if (!handle) return nullptr;
    stream.buffer.resize(BUFFER_BYTES);
    setvbuf(handle, stream.buffer.data(), _IOFBF, stream.buffer.size());
    return handle;
}
