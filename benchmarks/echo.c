/* The least that an echo server can do: one thread, epoll, no memory of its own for a connection. Prints its port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 256 * 1024, EVENTS = 256, FILES = 1 << 16 };

/* What could not be sent at once; there is none of it unless the peer is slow. */
static struct { char *data; size_t start, end; } rest[FILES];
static char block[BLOCK];
static int poller;

static void watch(int fd, int op, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(poller, op, fd, &event);
}

static void drop(int fd) {
    free(rest[fd].data);
    rest[fd].data = NULL;
    close(fd);
}

static void on_writable(int fd) {
    ssize_t n = send(fd, rest[fd].data + rest[fd].start, rest[fd].end - rest[fd].start, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN) drop(fd);
        return;
    }
    if ((rest[fd].start += n) == rest[fd].end) {
        free(rest[fd].data);
        rest[fd].data = NULL;
        watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void on_readable(int fd) {
    ssize_t n = recv(fd, block, BLOCK, 0), sent;
    if (n <= 0) {
        if (!n || errno != EAGAIN) drop(fd);
        return;
    }
    sent = send(fd, block, n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        drop(fd);
        return;
    }
    if (sent < 0) sent = 0;
    if (sent < n) {
        rest[fd].data = malloc(n - sent);
        memcpy(rest[fd].data, block + sent, n - sent);
        rest[fd].start = 0;
        rest[fd].end = n - sent;
        watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    poller = epoll_create1(0);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(poller, events, EVENTS, -1), one = 1;
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= FILES) {
                        close(fd);
                        continue;
                    }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    watch(fd, EPOLL_CTL_ADD, EPOLLIN);
                }
            } else if (events[i].events & EPOLLOUT)
                on_writable(fd);
            else
                on_readable(fd);
        }
    }
}
