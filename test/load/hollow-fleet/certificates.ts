/** Keys and certificates for hollow agents, one of each per agent, from the fleet's own authority. */
import { FleetCa } from '@moefleet/coordinator/identity/fleet-ca';
import { PublicKey } from '@peculiar/x509';
import { COORDINATOR_NAME } from '@moefleet/runtime';
import { generateKeyPair } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { promisify } from 'node:util';
import type { ClientTls } from './grpc-stream';

const LIFE_MS = 24 * 3_600_000;
/** Made at once; key generation runs on libuv's threads. */
const AT_ONCE = 32;

export async function makeCertificates(tlsFolder: string, agents: readonly { id: string; installId: string }[]): Promise<Map<string, ClientTls>> {
  const ca = await FleetCa.load(tlsFolder);
  const made = new Map<string, ClientTls>();
  for (let at = 0; at < agents.length; at += AT_ONCE) {
    await Promise.all(agents.slice(at, at + AT_ONCE).map(async ({ id, installId }) => {
      const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', {
        namedCurve: 'P-256', publicKeyEncoding: { type: 'spki', format: 'der' }, privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
      });
      const { chainPem } = await ca.issueDevice(new PublicKey(publicKey), id, installId, Date.now(), LIFE_MS);
      made.set(id, { context: createSecureContext({ ca: ca.certificatePem, cert: chainPem, key: privateKey }), cert: chainPem, key: privateKey, servername: COORDINATOR_NAME });
    }));
  }
  return made;
}
