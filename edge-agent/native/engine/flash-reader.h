// Reads expert bytes from flash with a few parallel lanes (threads). With O_DIRECT a slice goes straight into place
// where file offset, address and size are multiples of FLASH_BLOCK, and through the lane's bounce buffer otherwise;
// where the file system refuses O_DIRECT, reads are buffered. One thread at a time hands in a batch and waits for it;
// the lanes are woken by a semaphore, so handing in neither allocates nor locks.
#pragma once

#include "file-descriptor.h"
#include "status.h"

#include <atomic>
#include <memory>
#include <semaphore.h>
#include <string>
#include <thread>
#include <vector>

// A multiple of every logical block size in use (512 and 4096).
enum { FLASH_BLOCK = 4096 };
// Flash is flat above 256 KiB per read; 1 MiB keeps the bounce buffers small and lets lanes share one expert.
enum { FLASH_SLICE = 1 << 20 };

struct flash_slice {
    uint64_t offset = 0;          // in the file
    uint64_t bytes = 0;           // at most FLASH_SLICE
    char * to = nullptr;
    int32_t tag = 0;              // the caller's
    const char * tensor = "";     // for error messages
    // filled in by the lane
    int64_t begin_ns = 0, end_ns = 0;
    int32_t reads = 0;
    int32_t error = 0;            // errno; -1: the file ended early
};

struct flash_lane {
    std::thread thread;
    char * bounce = nullptr;      // FLASH_SLICE + 2 * FLASH_BLOCK bytes, aligned to FLASH_BLOCK
};

struct flash_reader {
    file_descriptor file;
    bool direct = false;
    std::vector<flash_lane> lanes;
    sem_t wake, done;
    bool semaphores = false;
    flash_slice * batch = nullptr;
    int32_t batch_size = 0;
    std::atomic<int32_t> next{0}, running{0};
    std::atomic<bool> stopping{false};
    flash_reader() = default;
    flash_reader(const flash_reader &) = delete;
};

// IO. `direct` asks for O_DIRECT; `reader.direct` says what was got. 1 <= lanes <= 64.
engine_status flash_reader_open(flash_reader & reader, const std::string & path, bool direct, int lanes);
void flash_reader_close(flash_reader & reader);

// Cuts `bytes` at `offset` into slices that are direct where they can be; returns how many were written to `out`,
// at most flash_slices_needed(bytes).
int flash_slices(uint64_t offset, uint64_t bytes, char * to, int32_t tag, const char * tensor, flash_slice * out);
inline int flash_slices_needed(uint64_t bytes) { return int(bytes / FLASH_SLICE) + 2; }

// Blocks until all n slices are in place. IO with the tensor named; slices that succeeded have error 0.
engine_status flash_reader_read(flash_reader & reader, flash_slice * slices, int n);
