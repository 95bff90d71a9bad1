import fc from 'fast-check';
import { orderDevices, planStages, stageAt } from './stage-plan';

const bounds = (text: string, devices: number) => planStages(text, devices).map((stage) => stage.devices);

test('up to ten devices are one stage, more are four, unless stages are given', () => {
  expect(bounds('', 10)).toEqual([10]);
  expect(bounds('', 1000)).toEqual([1, 50, 250, 1000]);
  expect(bounds('2,50%,100%', 10)).toEqual([2, 5, 10]);
});

test('stages that would add no device are left out', () => {
  expect(bounds('1,5%,25%,100%', 3)).toEqual([1, 3]);
  expect(bounds('1,100%', 0)).toEqual([]);
});

test.each(['5%', '100%,1', '0,100%', '101%', '-1,100%', 'x', '1.5,100%'])('refuses %s for twenty devices', (text) => {
  expect(() => planStages(text, 20)).toThrow(/staging\.stages/);
});

test('every device has one place, online ones first, the same each time, and classes take turns', () => {
  const candidate = fc.record({ deviceId: fc.uuid(), online: fc.boolean(), class: fc.constantFrom('phone', 'jetson', '') });
  fc.assert(fc.property(fc.uniqueArray(candidate, { selector: (one) => one.deviceId, maxLength: 60 }), fc.string(), (devices, seed) => {
    const order = orderDevices(seed, devices);
    expect([...order].sort()).toEqual(devices.map((device) => device.deviceId).sort());
    expect(orderDevices(seed, [...devices].reverse())).toEqual(order);
    const online = order.map((id) => devices.find((device) => device.deviceId === id)!.online);
    expect(online).toEqual([...online].sort((a, b) => Number(b) - Number(a)));
    const first = order.slice(0, 3).map((id) => devices.find((device) => device.deviceId === id)!);
    const kinds = new Set(devices.filter((device) => device.online).map((device) => device.class)).size;
    if (devices.filter((device) => device.online).length >= 3) expect(new Set(first.map((device) => device.class)).size).toBeGreaterThanOrEqual(Math.min(3, kinds));
  }));
});

test('a device\'s stage is the first that holds its place', () => {
  const stages = planStages('1,50%,100%', 4);
  expect([0, 1, 2, 3].map((at) => stageAt(stages, at))).toEqual([1, 2, 3, 3]);
});
