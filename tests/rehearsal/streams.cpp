// libcudart.so.13: streams, events (the host's clock), captures and graphs. Nothing runs, so all is done at once.
#include <cuda_runtime_api.h>

#include "device.h"
#include "runtime.h"

using rehearsal::Event;
using rehearsal::failed;
using rehearsal::Stream;
using rehearsal::stream_of;
using rehearsal::synchronise;

namespace {

Event* event_of(cudaEvent_t handle) { return reinterpret_cast<Event*>(handle); }

cudaError_t after(bool is_good) { return is_good ? cudaSuccess : failed(cudaErrorStreamCaptureUnsupported); }

// A graph, made or instantiated; nothing in it is ever looked at.
struct Graph {
  int capture;
};

}  // namespace

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream{.priority = priority});
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  rehearsal::leave_capture(stream_of(stream));
  delete stream_of(stream);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = stream_of(stream)->priority;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return after(synchronise("cudaStreamSynchronize", stream_of(stream)->capture != 0));
}

EXPORT cudaError_t cudaDeviceSynchronize() {
  return after(synchronise("cudaDeviceSynchronize", rehearsal::open_capture() != 0));
}

// A stream joins the capture that the event was recorded in.
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event_of(event)->capture != 0 && event_of(event)->capture == rehearsal::open_capture())
    stream_of(stream)->capture = event_of(event)->capture;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = reinterpret_cast<cudaEvent_t>(new Event{.is_timed = (flags & cudaEventDisableTiming) == 0});
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event_of(event);
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  event_of(event)->milliseconds = rehearsal::now();
  event_of(event)->capture = stream_of(stream)->capture;
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const int capture = event_of(event)->capture;
  return after(synchronise("cudaEventSynchronize", capture != 0 && capture == rehearsal::open_capture()));
}

EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!event_of(start)->is_timed || !event_of(end)->is_timed || event_of(start)->milliseconds == 0) {
    rehearsal::refuse("cudaEventElapsedTime of an event that takes no time, or was not recorded");
    return failed(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = static_cast<float>(event_of(end)->milliseconds - event_of(start)->milliseconds);
  return cudaSuccess;
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(current, *mode);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream_of(stream) == stream_of(nullptr)) {
    rehearsal::refuse("cudaStreamBeginCapture of the default stream");
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  rehearsal::begin_capture(stream_of(stream));
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{stream_of(stream)->capture});
  rehearsal::end_capture(stream_of(stream));
  ++rehearsal::counters[rehearsal::kGraphs];
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool is_captured = stream_of(stream)->capture != 0;
  *status = is_captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                            std::size_t* count) {
  cudaStreamIsCapturing(stream, status);
  if (id != nullptr) *id = stream_of(stream)->capture;
  if (graph != nullptr) *graph = nullptr;
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph{*reinterpret_cast<Graph*>(graph)});
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, std::size_t* count) {
  *count = 1;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Graph*>(executable);
  return cudaSuccess;
}

EXPORT cudaError_t cudaProfilerStart() { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop() { return cudaSuccess; }
