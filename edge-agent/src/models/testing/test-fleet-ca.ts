/** A fleet's CA and certificates of its devices, as a coordinator makes them. */
import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import * as x509 from '@peculiar/x509';
import type { ServerIdentity } from '../peer-listener';

const KEYS = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const SIGNATURE = { name: 'ECDSA', hash: 'SHA-256' } as const;
const HOUR_MS = 3_600_000;

export class TestFleetCa {
  private constructor(private readonly keys: webcrypto.CryptoKeyPair, private readonly certificate: x509.X509Certificate) {}

  static async create(): Promise<TestFleetCa> {
    const keys = await webcrypto.subtle.generateKey(KEYS, true, ['sign', 'verify']);
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: '01', name: 'CN=test fleet', notBefore: new Date(Date.now() - HOUR_MS), notAfter: new Date(Date.now() + HOUR_MS), keys, signingAlgorithm: SIGNATURE,
      extensions: [new x509.BasicConstraintsExtension(true, 0, true), new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true)],
    });
    return new TestFleetCa(keys, certificate);
  }

  async device(id: string): Promise<ServerIdentity> {
    const keys = await webcrypto.subtle.generateKey(KEYS, true, ['sign', 'verify']);
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: '02', subject: `CN=${id}`, issuer: this.certificate.subject, notBefore: new Date(Date.now() - HOUR_MS), notAfter: new Date(Date.now() + HOUR_MS),
      publicKey: keys.publicKey, signingKey: this.keys.privateKey, signingAlgorithm: SIGNATURE,
      extensions: [new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth, x509.ExtendedKeyUsage.serverAuth])],
    });
    const key = x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
    return { ca: this.certificate.toString('pem'), key, cert: certificate.toString('pem') };
  }
}
