// A device's queue of work, as whoever queues by several hands sees it: what it is given is done in
// order. What is in it is the business of those that the device opened (kernels/device.h).
#pragma once

namespace thermocline {

class DeviceQueue {
 public:
  DeviceQueue() = default;
  DeviceQueue(DeviceQueue&&) = default;
  DeviceQueue& operator=(DeviceQueue&&) = default;
  virtual ~DeviceQueue() = default;
};

}  // namespace thermocline
