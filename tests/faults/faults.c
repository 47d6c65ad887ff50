/* Preloaded into a process: counts, over all its threads, every call that changes something under one directory, and at
 * a chosen one kills the process, tears a write in half, or makes the call fail.
 *
 * Calls under the directory are let through one at a time, so what is on disk when the process dies is exactly what the
 * calls before it made. Which file a descriptor belongs to is read from /proc. faults_arm() starts it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, HALF, FAIL };          /* faults_arm's mode */
enum { OUTSIDE = -2, GO = -1, TEAR = 0 };  /* enter()'s answer; above 0: the errno to fail with */

static char root[PATH_MAX];
static size_t root_length;
static int armed, mode, error_number, report = -1;
static long number, from, to; /* of calls that match; those from `from` to `to` (both counted) meet the fault */
static char only_call[64], only_path[PATH_MAX];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static long (*raw)(long, ...); /* libc's syscall() */

__attribute__((constructor)) static void start(void) { raw = dlsym(RTLD_NEXT, "syscall"); }

/* report_to: a descriptor outside of the directory, which gets a line a call; -1: none.
 * call and path: which calls count, a name and a pattern of paths below the directory; "" for every one. */
int faults_arm(const char *directory, int how, long first, long last, int error, const char *call, const char *path,
               int report_to) {
  if (strlen(directory) >= sizeof root || strlen(call) >= sizeof only_call || strlen(path) >= sizeof only_path) return -1;
  pthread_mutex_lock(&gate);
  strcpy(root, directory), root_length = strlen(root);
  strcpy(only_call, call), strcpy(only_path, path);
  mode = how, from = first, to = last, error_number = error, report = report_to, number = 0;
  armed = 1;
  pthread_mutex_unlock(&gate);
  return 0;
}

long faults_count(void) { return number; }

static void die(void) {
  raw(SYS_kill, raw(SYS_getpid), SIGKILL);
  for (;;) pause(); /* the gate stays shut */
}

/* The path that a call means, below the directory; NULL where it lies elsewhere. */
static const char *below(int at, const char *path, char *full) {
  char link[64];
  ssize_t n = 0;
  if (path == NULL || path[0] != '/') {
    if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    n = raw(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
    if (n <= 0 || full[0] != '/') return NULL;
    full[n] = 0;
  }
  if (path != NULL) {
    if (n > 0) full[n++] = '/';
    if (n + strlen(path) >= PATH_MAX) return NULL;
    strcpy(full + n, path);
  }
  if (strncmp(full, root, root_length) || (full[root_length] != '/' && full[root_length] != 0)) return NULL;
  return full[root_length] ? full + root_length + 1 : ".";
}

static int needs_space(const char *call) {
  static const char *free_of[] = {"fsync", "fdatasync", "unlink", "rmdir", "truncate", "chmod", NULL};
  for (int i = 0; free_of[i]; i++)
    if (!strcmp(call, free_of[i])) return 0;
  return 1;
}

/* Before a call. Whatever is not OUTSIDE shuts the gate until leave(). */
static int enter(const char *call, int at, const char *path, int at2, const char *path2) {
  char full[PATH_MAX + 1], full2[PATH_MAX + 1], line[2 * PATH_MAX];
  const char *name, *name2 = NULL;
  if (!armed) return OUTSIDE;
  int before = errno;
  name = below(at, path, full);
  if (path2 != NULL) name2 = below(at2, path2, full2);
  if (name2 != NULL) name = name2; /* a rename is known by where it goes */
  errno = before;
  if (name == NULL) return OUTSIDE;
  if (only_call[0] && strcmp(only_call, call)) return OUTSIDE;
  if (only_path[0] && fnmatch(only_path, name, FNM_PATHNAME)) return OUTSIDE;
  if (mode == FAIL && error_number == ENOSPC && !only_call[0] && !needs_space(call)) return OUTSIDE;
  pthread_mutex_lock(&gate);
  number++;
  int hit = mode != COUNT && number >= from && number <= to;
  if (report >= 0) {
    int n = snprintf(line, sizeof line, "%ld %s %s%s\n", number, call, name, hit ? " !" : "");
    raw(SYS_write, report, line, n);
  }
  if (!hit) return GO;
  if (mode == FAIL) return error_number;
  if (mode == HALF && strstr(call, "write")) return TEAR;
  die();
  return GO;
}

static void leave(int how) {
  if (how == OUTSIDE) return;
  int before = errno;
  pthread_mutex_unlock(&gate);
  errno = before;
}

#define REAL(result, name, ...) \
  static result (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, #name)

/* Body of a call: fail, or make it and let the next one in. */
#define THROUGH(how, type, failed, made) \
  do { \
    int how_ = (how); \
    if (how_ > 0) { leave(how_); errno = how_; return failed; } \
    type made_ = (made); \
    leave(how_); \
    return made_; \
  } while (0)

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define MODE_OF(flags, mode_) \
  mode_t mode_ = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode_ = va_arg(rest, int); va_end(rest); }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    MODE_OF(flags, bits) \
    THROUGH(changes(flags) ? enter("open", AT_FDCWD, path, 0, NULL) : OUTSIDE, int, -1, real(path, flags, bits)); \
  }
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); \
    MODE_OF(flags, bits) \
    THROUGH(changes(flags) ? enter("open", at, path, 0, NULL) : OUTSIDE, int, -1, real(at, path, flags, bits)); \
  }
#define CREAT(name) \
  int name(const char *path, mode_t bits) { \
    REAL(int, name, const char *, mode_t); \
    THROUGH(enter("open", AT_FDCWD, path, 0, NULL), int, -1, real(path, bits)); \
  }
/* What stdio writes later is not seen: the tests compare with strace, and nothing of a run writes so. */
#define FOPEN(name) \
  FILE *name(const char *path, const char *how) { \
    REAL(FILE *, name, const char *, const char *); \
    int writes = strpbrk(how, "wa+") != NULL; \
    THROUGH(writes ? enter("open", AT_FDCWD, path, 0, NULL) : OUTSIDE, FILE *, NULL, real(path, how)); \
  }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) CREAT(creat) CREAT(creat64) FOPEN(fopen) FOPEN(fopen64)

int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int at, const char *path, int flags) { return openat(at, path, flags); }
int __openat64_2(int at, const char *path, int flags) { return openat64(at, path, flags); }

ssize_t write(int fd, const void *data, size_t n) {
  REAL(ssize_t, write, int, const void *, size_t);
  int how = enter("write", fd, NULL, 0, NULL);
  if (how == TEAR) { real(fd, data, n / 2); die(); }
  THROUGH(how, ssize_t, -1, real(fd, data, n));
}

#define PWRITE(name, offset) \
  ssize_t name(int fd, const void *data, size_t n, offset at) { \
    REAL(ssize_t, name, int, const void *, size_t, offset); \
    int how = enter("pwrite", fd, NULL, 0, NULL); \
    if (how == TEAR) { real(fd, data, n / 2, at); die(); } \
    THROUGH(how, ssize_t, -1, real(fd, data, n, at)); \
  }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)

/* The first half of what several buffers hold, in one buffer. */
static char *half(const struct iovec *parts, int count, size_t *n) {
  size_t total = 0, done = 0;
  for (int i = 0; i < count; i++) total += parts[i].iov_len;
  *n = total / 2;
  char *data = malloc(*n + 1);
  for (int i = 0; i < count && done < *n; i++) {
    size_t part = parts[i].iov_len < *n - done ? parts[i].iov_len : *n - done;
    memcpy(data + done, parts[i].iov_base, part);
    done += part;
  }
  return data;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  int how = enter("writev", fd, NULL, 0, NULL);
  if (how == TEAR) { size_t n; char *data = half(parts, count, &n); raw(SYS_write, fd, data, n); die(); }
  THROUGH(how, ssize_t, -1, real(fd, parts, count));
}

#define PWRITEV(name, offset) \
  ssize_t name(int fd, const struct iovec *parts, int count, offset at) { \
    REAL(ssize_t, name, int, const struct iovec *, int, offset); \
    int how = enter("pwritev", fd, NULL, 0, NULL); \
    if (how == TEAR) { size_t n; char *data = half(parts, count, &n); raw(SYS_pwrite64, fd, data, n, at); die(); } \
    THROUGH(how, ssize_t, -1, real(fd, parts, count, at)); \
  }
#define PWRITEV2(name, offset) \
  ssize_t name(int fd, const struct iovec *parts, int count, offset at, int flags) { \
    REAL(ssize_t, name, int, const struct iovec *, int, offset, int); \
    int how = enter("pwritev", fd, NULL, 0, NULL); \
    if (how == TEAR) { \
      size_t n; char *data = half(parts, count, &n); \
      if (at < 0) raw(SYS_write, fd, data, n); \
      else raw(SYS_pwrite64, fd, data, n, at); \
      die(); \
    } \
    THROUGH(how, ssize_t, -1, real(fd, parts, count, at, flags)); \
  }
PWRITEV(pwritev, off_t) PWRITEV(pwritev64, off64_t) PWRITEV2(pwritev2, off_t) PWRITEV2(pwritev64v2, off64_t)

#define ON_FD(name, call, declared, types, values) \
  int name declared { \
    REAL(int, name, types); \
    THROUGH(enter(call, fd, NULL, 0, NULL), int, -1, real values); \
  }
#define LIST(...) __VA_ARGS__
ON_FD(fsync, "fsync", (int fd), int, (fd))
ON_FD(fdatasync, "fdatasync", (int fd), int, (fd))
ON_FD(fchmod, "chmod", (int fd, mode_t bits), LIST(int, mode_t), (fd, bits))
ON_FD(ftruncate, "truncate", (int fd, off_t n), LIST(int, off_t), (fd, n))
ON_FD(ftruncate64, "truncate", (int fd, off64_t n), LIST(int, off64_t), (fd, n))
ON_FD(fallocate, "fallocate", (int fd, int how, off_t a, off_t n), LIST(int, int, off_t, off_t), (fd, how, a, n))
ON_FD(fallocate64, "fallocate", (int fd, int how, off64_t a, off64_t n), LIST(int, int, off64_t, off64_t), (fd, how, a, n))

ssize_t sendfile64(int out, int in, off64_t *at, size_t n) {
  REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
  THROUGH(enter("sendfile", out, NULL, 0, NULL), ssize_t, -1, real(out, in, at, n));
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
  REAL(ssize_t, sendfile, int, int, off_t *, size_t);
  THROUGH(enter("sendfile", out, NULL, 0, NULL), ssize_t, -1, real(out, in, at, n));
}
ssize_t copy_file_range(int in, off64_t *from_, int out, off64_t *to_, size_t n, unsigned flags) {
  REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
  THROUGH(enter("copy_file_range", out, NULL, 0, NULL), ssize_t, -1, real(in, from_, out, to_, n, flags));
}

#define ON_PATH(name, call, at, declared, types, values) \
  int name declared { \
    REAL(int, name, types); \
    THROUGH(enter(call, at, path, 0, NULL), int, -1, real values); \
  }
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t bits), LIST(const char *, mode_t), (path, bits))
ON_PATH(mkdirat, "mkdir", fd, (int fd, const char *path, mode_t bits), LIST(int, const char *, mode_t), (fd, path, bits))
ON_PATH(rmdir, "rmdir", AT_FDCWD, (const char *path), const char *, (path))
ON_PATH(unlink, "unlink", AT_FDCWD, (const char *path), const char *, (path))
ON_PATH(remove, "unlink", AT_FDCWD, (const char *path), const char *, (path))
ON_PATH(truncate, "truncate", AT_FDCWD, (const char *path, off_t n), LIST(const char *, off_t), (path, n))
ON_PATH(truncate64, "truncate", AT_FDCWD, (const char *path, off64_t n), LIST(const char *, off64_t), (path, n))
ON_PATH(chmod, "chmod", AT_FDCWD, (const char *path, mode_t bits), LIST(const char *, mode_t), (path, bits))
ON_PATH(fchmodat, "chmod", fd, (int fd, const char *path, mode_t bits, int flags), LIST(int, const char *, mode_t, int),
        (fd, path, bits, flags))
int unlinkat(int fd, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  THROUGH(enter(flags & AT_REMOVEDIR ? "rmdir" : "unlink", fd, path, 0, NULL), int, -1, real(fd, path, flags));
}

#define TWO_PATHS(name, call) \
  int name(const char *old, const char *new) { \
    REAL(int, name, const char *, const char *); \
    THROUGH(enter(call, AT_FDCWD, old, AT_FDCWD, new), int, -1, real(old, new)); \
  }
TWO_PATHS(rename, "rename") TWO_PATHS(link, "link")
int symlink(const char *target, const char *path) {
  REAL(int, symlink, const char *, const char *);
  THROUGH(enter("symlink", AT_FDCWD, path, 0, NULL), int, -1, real(target, path));
}
int symlinkat(const char *target, int fd, const char *path) {
  REAL(int, symlinkat, const char *, int, const char *);
  THROUGH(enter("symlink", fd, path, 0, NULL), int, -1, real(target, fd, path));
}
int renameat(int a, const char *old, int b, const char *new) {
  REAL(int, renameat, int, const char *, int, const char *);
  THROUGH(enter("rename", a, old, b, new), int, -1, real(a, old, b, new));
}
int renameat2(int a, const char *old, int b, const char *new, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned);
  THROUGH(enter("rename", a, old, b, new), int, -1, real(a, old, b, new, flags));
}
int linkat(int a, const char *old, int b, const char *new, int flags) {
  REAL(int, linkat, int, const char *, int, const char *, int);
  THROUGH(enter("link", a, old, b, new), int, -1, real(a, old, b, new, flags));
}

#define S(i) ((const char *)a[i])
static int of_syscall(long which, const long a[6]) {
  switch (which) {
#ifdef SYS_open
    case SYS_open: return changes(a[1]) ? enter("open", AT_FDCWD, S(0), 0, NULL) : OUTSIDE;
    case SYS_creat: return enter("open", AT_FDCWD, S(0), 0, NULL);
    case SYS_mkdir: return enter("mkdir", AT_FDCWD, S(0), 0, NULL);
    case SYS_rmdir: return enter("rmdir", AT_FDCWD, S(0), 0, NULL);
    case SYS_unlink: return enter("unlink", AT_FDCWD, S(0), 0, NULL);
    case SYS_rename: return enter("rename", AT_FDCWD, S(0), AT_FDCWD, S(1));
    case SYS_link: return enter("link", AT_FDCWD, S(0), AT_FDCWD, S(1));
    case SYS_symlink: return enter("symlink", AT_FDCWD, S(1), 0, NULL);
    case SYS_chmod: return enter("chmod", AT_FDCWD, S(0), 0, NULL);
    case SYS_renameat: return enter("rename", a[0], S(1), a[2], S(3));
#endif
    case SYS_openat: return changes(a[2]) ? enter("open", a[0], S(1), 0, NULL) : OUTSIDE;
    case SYS_openat2: return changes(*(const unsigned long long *)a[2]) ? enter("open", a[0], S(1), 0, NULL) : OUTSIDE;
    case SYS_mkdirat: return enter("mkdir", a[0], S(1), 0, NULL);
    case SYS_unlinkat: return enter(a[2] & AT_REMOVEDIR ? "rmdir" : "unlink", a[0], S(1), 0, NULL);
    case SYS_renameat2: return enter("rename", a[0], S(1), a[2], S(3));
    case SYS_linkat: return enter("link", a[0], S(1), a[2], S(3));
    case SYS_symlinkat: return enter("symlink", a[1], S(2), 0, NULL);
    case SYS_truncate: return enter("truncate", AT_FDCWD, S(0), 0, NULL);
    case SYS_ftruncate: return enter("truncate", a[0], NULL, 0, NULL);
    case SYS_fallocate: return enter("fallocate", a[0], NULL, 0, NULL);
    case SYS_fchmod: return enter("chmod", a[0], NULL, 0, NULL);
    case SYS_fsync: return enter("fsync", a[0], NULL, 0, NULL);
    case SYS_fdatasync: return enter("fdatasync", a[0], NULL, 0, NULL);
    case SYS_sendfile: return enter("sendfile", a[0], NULL, 0, NULL);
    case SYS_copy_file_range: return enter("copy_file_range", a[2], NULL, 0, NULL);
    case SYS_write: return enter("write", a[0], NULL, 0, NULL);
    case SYS_pwrite64: return enter("pwrite", a[0], NULL, 0, NULL);
    case SYS_writev: return enter("writev", a[0], NULL, 0, NULL);
    case SYS_pwritev: case SYS_pwritev2: return enter("pwritev", a[0], NULL, 0, NULL);
    default: return OUTSIDE;
  }
}

long syscall(long which, ...) {
  long a[6];
  va_list rest;
  va_start(rest, which);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  if (!raw) start();
  int how = armed ? of_syscall(which, a) : OUTSIDE;
  if (how == TEAR) {
    if (which == SYS_write || which == SYS_pwrite64) raw(which, a[0], a[1], a[2] / 2, a[3], a[4], a[5]);
    else {
      size_t n; char *data = half((const struct iovec *)a[1], a[2], &n);
      if (which == SYS_writev) raw(SYS_write, a[0], data, n);
      else raw(SYS_pwrite64, a[0], data, n, a[3]);
    }
    die();
  }
  THROUGH(how, long, -1, raw(which, a[0], a[1], a[2], a[3], a[4], a[5]));
}
