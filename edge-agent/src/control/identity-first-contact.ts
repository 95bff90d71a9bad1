/**
 * The first word with a coordinator, before there is anything to check it by but a fingerprint: looks at the chain that
 * it shows and takes from it the CA certificate with that fingerprint. Nothing is sent. Whoever shows the CA need not
 * be the fleet; the connection that follows is checked against it in full.
 */
import { connect, type DetailedPeerCertificate } from 'node:tls';
import { COORDINATOR_NAME } from '@moefleet/runtime';

const TIMEOUT_MS = 10_000;

/** What was found cannot be the coordinator that is meant; the message says why. */
export class FirstContactError extends Error {
  override readonly name = 'FirstContactError';
}

/** `coordinator`: host:port. PEM of the CA certificate. Throws FirstContactError, or the socket's error. */
export function fetchPinnedCa(coordinator: string, fingerprint: string): Promise<string> {
  return shownChain(coordinator).then((chain) => {
    const ca = chain.find((certificate) => certificate.fingerprint256.replaceAll(':', '').toLowerCase() === fingerprint);
    if (ca) return `-----BEGIN CERTIFICATE-----\n${ca.raw.toString('base64').replace(/(.{64})/g, '$1\n').trimEnd()}\n-----END CERTIFICATE-----\n`;
    throw new FirstContactError(`${coordinator} does not belong to the fleet of the token: it shows no CA with the fingerprint ${fingerprint}; check --coordinator, or make a token there (moefleet token create)`);
  });
}

/** Whether a coordinator's port speaks TLS. */
export function speaksTls(coordinator: string): Promise<boolean> {
  return shownChain(coordinator).then(() => true, () => false);
}

function shownChain(coordinator: string): Promise<DetailedPeerCertificate[]> {
  const at = coordinator.lastIndexOf(':');
  const host = coordinator.slice(0, at).replace(/^\[|\]$/g, '');
  return new Promise((resolve, reject) => {
    // Unverified on purpose: the chain is looked at here, and checked by its fingerprint.
    const socket = connect({ host, port: Number(coordinator.slice(at + 1)), servername: COORDINATOR_NAME, ALPNProtocols: ['h2'], minVersion: 'TLSv1.3', rejectUnauthorized: false }, () => {
      const chain: DetailedPeerCertificate[] = [];
      for (let one = socket.getPeerCertificate(true); one?.raw && !chain.includes(one); one = one.issuerCertificate) chain.push(one);
      socket.destroy();
      resolve(chain);
    });
    socket.setTimeout(TIMEOUT_MS, () => socket.destroy(new Error(`${coordinator} did not answer within ${TIMEOUT_MS} ms`)));
    socket.on('error', (error) => reject(/wrong version number|packet length too long/i.test(error.message)
      ? new FirstContactError(`${coordinator} speaks plaintext, where nobody enrols; leave out --enrol-token, or start the coordinator with --tls-dir`) : error));
  });
}
