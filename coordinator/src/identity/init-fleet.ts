/** `moefleet fleet init`: a new authority, and what to do with it. */
import { resolve } from 'node:path';
import { InvalidRequestError } from '../errors';
import { isId } from '../names';
import { FLEET_FILES, FleetCa } from './fleet-ca';

export interface NewFleet {
  name: string;
  folder: string;
  /** hex SHA-256 of the authority's certificate */
  fingerprint: string;
  certificateFile: string;
  keyFile: string;
  hosts: string[];
}

/** A host name, an IPv4 or IPv6 address. */
const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|[0-9A-Fa-f:]{2,45})$/;

/** Throws InvalidRequestError or FleetFolderError. */
export async function initFleet(folder: string, name: string, hosts: readonly string[], nowMs: number): Promise<NewFleet> {
  if (!isId(name)) throw new InvalidRequestError('name', name, 'a name of letters, digits, ".", "_" and "-"');
  for (const host of hosts) if (!HOST.test(host)) throw new InvalidRequestError('host', host, 'a host name or an IP address');
  const path = resolve(folder);
  const ca = await FleetCa.create(path, { name, hosts: [...hosts] }, nowMs);
  return { name, folder: path, fingerprint: ca.fingerprint, certificateFile: `${path}/${FLEET_FILES.certificate}`, keyFile: `${path}/${FLEET_FILES.key}`, hosts: [...hosts] };
}
