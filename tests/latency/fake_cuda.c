/* A CUDA driver whose one device is the host's memory: as much of it as buffers, streams, events and graphs need.
   Every call is written to the file named by FAKE_CUDA_LOG. FAKE_CUDA_NO_DEVICE and FAKE_CUDA_NO_CAPTURE make it refuse. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_CONTEXT = 201, NOT_READY = 600, CAPTURE_INVALIDATED = 901 };

static int depth = 0, primary = 0, capturing = 0, polls = 0;
static char context, executable, graph;

static int said(const char *name, int result) {
  const char *path = getenv("FAKE_CUDA_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (log) {
    fprintf(log, "%s\n", name);
    fclose(log);
  }
  return result;
}

#define SAY(result) return said(__func__, result)
#define NEED_CONTEXT if (!depth) SAY(INVALID_CONTEXT)

int cuInit(unsigned flags) { (void)flags; SAY(getenv("FAKE_CUDA_NO_DEVICE") ? NO_DEVICE : SUCCESS); }
int cuGetErrorString(int error, const char **text) { *text = error == NO_DEVICE ? "no device" : "some error"; return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; snprintf(name, length, "Fake GPU"); return SUCCESS; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; *major = 9; *minor = 0; return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 1ul << 30; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **made, int device) { (void)device; primary++; *made = &context; SAY(SUCCESS); }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; primary--; SAY(SUCCESS); }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? SUCCESS : INVALID_CONTEXT; }
int cuCtxPushCurrent_v2(void *which) { if (which != &context) SAY(INVALID_CONTEXT); depth++; SAY(SUCCESS); }
int cuCtxPopCurrent_v2(void **which) { NEED_CONTEXT; *which = &context; depth--; SAY(SUCCESS); }
int cuCtxSynchronize(void) { SAY(SUCCESS); }
int cuCtxDetach(void *which) { (void)which; SAY(SUCCESS); }

int cuMemAlloc_v2(unsigned long long *address, size_t bytes) {
  NEED_CONTEXT;
  if (bytes == 0) SAY(INVALID_VALUE);
  *address = (unsigned long long)malloc(bytes);
  SAY(SUCCESS);
}
int cuMemFree_v2(unsigned long long address) { free((void *)address); SAY(SUCCESS); }
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t n) { NEED_CONTEXT; memcpy((void *)to, from, n); SAY(SUCCESS); }
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t n) { NEED_CONTEXT; memcpy(to, (void *)from, n); SAY(SUCCESS); }

int cuStreamCreate(void **stream, unsigned flags) { (void)flags; NEED_CONTEXT; *stream = malloc(1); SAY(SUCCESS); }
int cuStreamDestroy_v2(void *stream) { free(stream); SAY(SUCCESS); }
int cuStreamSynchronize(void *stream) { (void)stream; SAY(SUCCESS); }
int cuEventCreate(void **event, unsigned flags) { (void)flags; NEED_CONTEXT; *event = malloc(1); SAY(SUCCESS); }
int cuEventDestroy_v2(void *event) { free(event); SAY(SUCCESS); }
int cuEventRecord(void *event, void *stream) { polls = 0; SAY(event && stream ? SUCCESS : INVALID_VALUE); }
int cuEventQuery(void *event) { (void)event; SAY(++polls < 3 ? NOT_READY : SUCCESS); }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { (void)start; (void)end; *ms = 2.5f; SAY(SUCCESS); }
int cuEventElapsedTime(float *ms, void *start, void *end) { return cuEventElapsedTime_v2(ms, start, end); }

int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; SAY(stream && mode == 1 ? SUCCESS : INVALID_VALUE); }
int cuStreamEndCapture(void *stream, void **made) {
  (void)stream;
  int result = !capturing ? INVALID_VALUE : getenv("FAKE_CUDA_NO_CAPTURE") ? CAPTURE_INVALIDATED : SUCCESS;
  capturing = 0;
  *made = result ? NULL : &graph;
  SAY(result);
}
int cuGraphInstantiateWithFlags(void **made, void *of, unsigned long long flags) {
  *made = &executable;
  SAY(of == &graph && flags == 0 ? SUCCESS : INVALID_VALUE);
}
int cuGraphLaunch(void *what, void *stream) { SAY(what == &executable && stream ? SUCCESS : INVALID_VALUE); }
int cuGraphExecDestroy(void *what) { SAY(what == &executable ? SUCCESS : INVALID_VALUE); }
int cuGraphDestroy(void *what) { SAY(what == &graph ? SUCCESS : INVALID_VALUE); }
