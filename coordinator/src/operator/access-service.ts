/** Who did what: the audit log, for operators. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { AccessServiceServer, AuditEntry as EntryMessage, ReadAuditRequest } from '@moefleet/proto';
import { type Logger, parseSelector, selectorMatches } from '@moefleet/runtime';
import { checkId } from '../names';
import type { AuditEntry, AuditFilter, AuditSubject } from '../registry/audit-store';
import type { Registry } from '../registry/registry';
import { orderedStream } from './call-handler';
import { within } from './value-check';

const DEFAULT_LIMIT = 100;
const MOST_LIMIT = 10_000;
/** Between two looks of one who follows: soon enough for people, one range read of Redis. */
const LOOK_EVERY_MS = 500;

export interface AccessDeps {
  registry: Registry;
  log: Logger;
}

export function accessService({ registry, log }: AccessDeps): AccessServiceServer {
  return {
    readAudit: orderedStream(log, async (request, send, signal) => {
      const filter = await auditFilter(registry, request);
      const limit = request.limit === 0 ? DEFAULT_LIMIT : within('limit', request.limit, 1, MOST_LIMIT);
      const sinceMs = request.sinceMs === 0n ? 0 : Math.max(1, Date.now() - Number(request.sinceMs));
      let { entries, last } = await registry.audit.latest(sinceMs, limit, filter);
      for (;;) {
        for (const entry of entries) await send({ entry: viewEntry(entry) });
        if (!request.follow) return;
        await sleep(LOOK_EVERY_MS, undefined, { signal });
        ({ entries, last } = await registry.audit.after(last, filter));
      }
    }),
  };
}

async function auditFilter(registry: Registry, { deviceId, who }: ReadAuditRequest): Promise<AuditFilter> {
  const byWho: AuditFilter = (entry) => who === '' || entry.who === who;
  if (deviceId === '') return byWho;
  const device = await registry.devices.read(checkId('device_id', deviceId));
  const labels = device?.info?.labels ?? {};
  return (entry) => byWho(entry) && concerns(entry.subject, deviceId, labels);
}

function concerns(subject: AuditSubject, deviceId: string, labels: Readonly<Record<string, string>>): boolean {
  switch (subject.t) {
    case 'all': return true;
    case 'none': return false;
    case 'devices': return subject.ids.includes(deviceId);
    case 'selector':
      try {
        return selectorMatches(parseSelector(subject.selector), labels);
      } catch {
        // not written by us
        return false;
      }
  }
}

function viewEntry({ subject, timeMs, ...entry }: AuditEntry): EntryMessage {
  return {
    ...entry, timeMs: BigInt(timeMs), deviceIds: subject.t === 'devices' ? [...subject.ids] : [],
    selector: subject.t === 'selector' ? subject.selector : '', allDevices: subject.t === 'all',
  };
}
