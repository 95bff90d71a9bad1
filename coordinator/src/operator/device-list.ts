/** The list of devices, in pages that fit a gRPC message at its default limit of 4 MiB. */
import { Device, type ListDevicesRequest, type ListDevicesResponse } from '@moefleet/proto';
import { selectorMatches } from '@moefleet/runtime';
import { checkId } from '../names';
import type { Registry } from '../registry/registry';
import { viewDevice } from './device-view';
import { checkSelector } from './request-check';

const MOST_PER_PAGE = 2000;
/** Left of 4 MiB for the one device that goes beyond it: a frame of a model with many layers is some 10 KiB. */
const PAGE_BYTES = 3 * 1024 * 1024;
/** Read from Redis at once. */
const READ = 256;

/** Sorted by id. Devices that come or go between two pages are in or out; none is listed twice. */
export async function listDevices(registry: Registry, request: ListDevicesRequest, jaegerUrl: string): Promise<ListDevicesResponse> {
  const selector = request.selector ? checkSelector('selector', request.selector) : [];
  const from = request.pageToken === '' ? '' : checkId('page_token', request.pageToken);
  const most = request.pageSize === 0 ? Infinity : Math.min(request.pageSize, MOST_PER_PAGE);
  const mostBytes = request.pageSize === 0 ? Infinity : PAGE_BYTES;
  const [ids, shared] = await Promise.all([registry.devices.ids(), registry.pins.shared()]);
  const rest = ids.filter((id) => id > from);
  const devices: Device[] = [];
  let bytes = 0;
  for (let at = 0; at < rest.length; at += READ) {
    for (const record of await registry.devices.readSome(rest.slice(at, at + READ))) {
      if (!selectorMatches(selector, record.labels)) continue;
      const device = viewDevice(record, shared, jaegerUrl);
      bytes += mostBytes === Infinity ? 0 : Device.encode(device).finish().length;
      if (devices.length > 0 && (devices.length >= most || bytes > mostBytes)) return { devices, nextPageToken: devices.at(-1)!.id };
      devices.push(device);
    }
  }
  return { devices, nextPageToken: '' };
}
