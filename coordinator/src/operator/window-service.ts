/** Router windows that are kept of a device: what there is, their bytes for a replay, and their end. */
import type { WindowServiceServer } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { NotFoundError } from '../errors';
import { checkId } from '../names';
import type { Registry } from '../registry/registry';
import { orderedStream, unary } from './call-handler';
import { checkWhy } from './request-check';

export interface WindowDeps {
  registry: Registry;
  log: Logger;
}

export function windowService({ registry, log }: WindowDeps): WindowServiceServer {
  const { windows } = registry;
  const known = async (id: string): Promise<string> => {
    const deviceId = checkId('device_id', id);
    if (!await registry.devices.read(deviceId)) throw new NotFoundError(`device ${deviceId} is not known; see the list of devices`);
    return deviceId;
  };
  return {
    listWindows: unary(log, async ({ deviceId }) => {
      const kept = await windows.list(await known(deviceId));
      return {
        windows: kept.map(({ window, bytes }) => ({ window: { ...window, data: Buffer.alloc(0) }, bytes })),
        mostWindows: windows.bound.windows, mostBytes: BigInt(windows.bound.bytes),
      };
    }),
    readWindows: orderedStream(log, async ({ deviceId }, send) => {
      for (const { window } of await windows.list(await known(deviceId))) await send({ window });
    }),
    deleteWindows: unary(log, async ({ deviceId, why }, caller) => {
      const id = await known(deviceId);
      const entry = { who: caller.name, what: `delete the router windows of device ${id}`, why: checkWhy(why), subject: { t: 'devices', ids: [id] } as const };
      const { windows: count, bytes } = await registry.audit.around(entry, () => windows.delete(id));
      return { windows: count, bytes: BigInt(bytes) };
    }),
  };
}
