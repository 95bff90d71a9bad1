// Owns one file descriptor.
#pragma once

#include <unistd.h>
#include <utility>

struct file_descriptor {
    int fd = -1;
    file_descriptor() = default;
    explicit file_descriptor(int opened) : fd(opened) {}
    file_descriptor(file_descriptor && other) noexcept : fd(std::exchange(other.fd, -1)) {}
    file_descriptor & operator=(file_descriptor && other) noexcept {
        std::swap(fd, other.fd);
        return *this;
    }
    file_descriptor(const file_descriptor &) = delete;
    file_descriptor & operator=(const file_descriptor &) = delete;
    ~file_descriptor() {
        if (fd >= 0) close(fd);
    }
};
