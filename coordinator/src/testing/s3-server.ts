/**
 * An S3-compatible server for tests, in this process, over a folder. It knows keys by their id and does not recompute
 * signatures; so that the same tests can meet one that does, MOEFLEET_TEST_S3 names another server, which has a bucket
 * `fleet` and the credentials of the environment.
 */
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

/** The credentials it knows. */
export const S3_CREDENTIALS = process.env['MOEFLEET_TEST_S3'] ? {} : { AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER' };

interface S3rver { run(): Promise<AddressInfo>; close(): Promise<void> }

export async function startS3(folder: string, bucket: string): Promise<{ endpoint: string; close(): Promise<void> }> {
  const other = process.env['MOEFLEET_TEST_S3'];
  if (other) return { endpoint: other, async close() {} };
  const { default: Server } = await import('s3rver' as string) as { default: new (options: object) => S3rver };
  const server = new Server({ address: '127.0.0.1', port: 0, silent: true, directory: join(folder, 's3'), configureBuckets: [{ name: bucket }] });
  const { port } = await server.run();
  return { endpoint: `http://127.0.0.1:${port}`, close: () => server.close() };
}
