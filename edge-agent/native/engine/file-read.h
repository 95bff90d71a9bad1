// Positioned reads that come back whole or say why not.
#pragma once

#include "status.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <unistd.h>

enum { FILE_ENDED_EARLY = -1 };

// 0, an errno, or FILE_ENDED_EARLY.
inline int file_read(int fd, void * to, size_t n, uint64_t offset) {
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(fd, static_cast<char *>(to) + done, n - done, off_t(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) return FILE_ENDED_EARLY;
        done += size_t(got);
    }
    return 0;
}

inline engine_status file_read_failed(const std::string & path, int error) {
    return status_error(ENGINE_IO, "%s: %s", path.c_str(), error == FILE_ENDED_EARLY ? "the file ended early" : strerror(error));
}
