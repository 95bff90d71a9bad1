// The SHA-256 digests that a packed file carries in its metadata, so that every byte of it that is used can be checked:
//
//   moefleet.pack.version   u32, 1
//   moefleet.sha256.experts u8[32 x MoE layers x experts], layer by layer: an expert's matrices one after the other, in
//                           alphabetical order of their kind (down, gate, gate_up, up)
//   moefleet.sha256.dense   u8[32 x other tensors], in the order in which the file describes them
//   moefleet.sha256.header  u8[32]: everything before the tensor data, with the elements of these three arrays as zeros
//
// They find damage (a failing disk, a bad copy), not malice: whoever can write the file can write the digests.
#pragma once

#include "model-file.h"
#include "sha256.h"

#include <array>

enum { PACK_VERSION = 1 };
#define PACK_VERSION_KEY "moefleet.pack.version"
#define EXPERT_DIGESTS_KEY "moefleet.sha256.experts"
#define DENSE_DIGESTS_KEY "moefleet.sha256.dense"
#define HEADER_DIGEST_KEY "moefleet.sha256.header"

using sha256_digest = std::array<uint8_t, SHA256_BYTES>;

struct model_checksums {
    std::vector<sha256_digest> experts;  // MoE layers x experts
    std::vector<sha256_digest> dense;    // of the tensors of checksums_dense_tensors
    sha256_digest header;
};

// Those that are no expert matrix of a layer the engine runs, in file order.
std::vector<const gguf_tensor *> checksums_dense_tensors(const model_file & file);

// BAD_ARGUMENT (the file is not packed), MODEL_FORMAT (arrays of other sizes, another version), IO.
engine_status model_checksums_read(const model_file & file, model_checksums & out);

// Digest of the first `header.data_offset` bytes of `fd`, digests masked. IO.
engine_status model_header_digest(int fd, const model_file & file, sha256_digest & out);

// Zeroes what belongs to the digest arrays in `bytes`, which are the file's from `offset` on.
void model_checksums_mask(const gguf_header & header, uint64_t offset, char * bytes, size_t n);
