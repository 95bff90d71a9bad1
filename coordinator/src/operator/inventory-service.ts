/** What operators say about devices: their labels. Why a device runs what it runs. How devices change. */
import type { ChangeLabelsRequest, InventoryServiceServer, LabelledDevice } from '@moefleet/proto';
import { isLabelKey, type Labels, type Logger, selectorMatches } from '@moefleet/runtime';
import { BusyError, InvalidRequestError, NotFoundError } from '../errors';
import { checkId, checkLabels } from '../names';
import { inChunks } from '../registry/chunks';
import type { DeviceRecord } from '../registry/device-record';
import type { Registry } from '../registry/registry';
import { auditSubject, type Target } from '../rollout/change';
import { specInputs } from '../rollout/desired-writer';
import { explainSpec } from '../rollout/explain-spec';
import { orderedStream, unary } from './call-handler';
import { DeviceWatch } from './device-watch';
import { viewDevice } from './device-view';
import { checkSelector, checkTarget } from './request-check';

export interface InventoryDeps {
  registry: Registry;
  rollouts: { alignDevice(deviceId: string): Promise<unknown> };
  jaegerUrl: string;
  log: Logger;
}

/** Per device; each is read whenever the device is. */
const MOST_LABELS = 64;
const MOST_WHY = 500;
/** Each reads every device that changes. */
const MOST_WATCHERS = 50;

export function inventoryService({ registry, rollouts, jaegerUrl, log }: InventoryDeps): InventoryServiceServer {
  let watchers = 0;
  return {
    explainConfig: unary(log, async ({ deviceId }) => {
      const [device, shared] = await Promise.all([registry.devices.read(checkId('device_id', deviceId)), registry.pins.shared()]);
      if (!device) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
      return { device: viewDevice(device, shared, jaegerUrl), fields: explainSpec(specInputs(device, shared)) };
    }),
    watchDevices: orderedStream(log, async ({ selector }, send, signal) => {
      const matches = selector ? checkSelector('selector', selector) : [];
      if (watchers >= MOST_WATCHERS) throw new BusyError(`${MOST_WATCHERS} callers watch devices here already; end one of them, or ask another coordinator`);
      watchers += 1;
      try {
        await new DeviceWatch(registry, matches).run(send, signal);
      } finally {
        watchers -= 1;
      }
    }),
    changeLabels: unary(log, async (request, caller) => {
      const { target, set, remove } = checkLabelChange(request);
      const devices = await targets(registry, target);
      const changing = devices.filter((device) => differs(device.operatorLabels, labelsAfter(device, set, remove)));
      for (const device of changing) {
        const count = Object.keys(labelsAfter(device, set, remove)).length;
        if (count > MOST_LABELS) throw new InvalidRequestError('set', `${count} labels`, `possible on device ${device.id}: operators may set up to ${MOST_LABELS}`);
      }
      if (changing.length === 0) return { devices: [], matched: devices.length };
      const before = Object.fromEntries(changing.slice(0, 20).map((device) => [device.id, device.operatorLabels]));
      const what = [...Object.entries(set).map(([key, value]) => `${key}=${value}`), ...remove.map((key) => `${key}-`)].join(' ');
      const entry = { who: caller.name, what: `labels ${what} on ${changing.length} devices`, why: request.why, subject: auditSubject(target), before, after: { set, remove } };
      const changed = await registry.audit.around(entry, () => inChunks(changing, async ({ id }): Promise<LabelledDevice[]> => {
        await registry.devices.changeLabels(id, set, remove);
        await rollouts.alignDevice(id);
        registry.events.emit({ kind: 'device', deviceId: id });
        const device = await registry.devices.read(id);
        return device ? [{ deviceId: id, labels: { ...device.labels }, operatorLabels: { ...device.operatorLabels } }] : [];
      }));
      return { devices: changed.flat(), matched: devices.length };
    }),
  };
}

function checkLabelChange({ target, set, remove, why }: ChangeLabelsRequest): { target: Target; set: Labels; remove: string[] } {
  checkLabels('set', set);
  if (remove.length > MOST_LABELS) throw new InvalidRequestError('remove', `${remove.length} keys`, `at most ${MOST_LABELS}`);
  for (const key of remove) {
    if (!isLabelKey(key)) throw new InvalidRequestError('remove', key, 'a label key such as class or site.example/room');
    if (Object.hasOwn(set, key)) throw new InvalidRequestError('remove', key, 'possible beside setting it; do one of the two');
  }
  if (remove.length + Object.keys(set).length === 0) throw new InvalidRequestError('set', 'nothing', 'a label to set or remove');
  if (why.length > MOST_WHY) throw new InvalidRequestError('why', `${why.length} characters`, `at most ${MOST_WHY}`);
  return { target: checkTarget(target), set, remove: [...new Set(remove)] };
}

async function targets(registry: Registry, target: Target): Promise<DeviceRecord[]> {
  if (target.t === 'device') {
    const device = await registry.devices.read(target.deviceId);
    if (!device) throw new NotFoundError(`device ${target.deviceId} is not known; see the list of devices`);
    return [device];
  }
  const devices = await registry.devices.readAll();
  return target.t === 'all' ? devices : devices.filter((device) => selectorMatches(target.selector, device.labels));
}

function labelsAfter(device: DeviceRecord, set: Labels, remove: readonly string[]): Labels {
  return Object.fromEntries(Object.entries({ ...device.operatorLabels, ...set }).filter(([key]) => !remove.includes(key)));
}

function differs(a: Labels, b: Labels): boolean {
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].some((key) => a[key] !== b[key]);
}
