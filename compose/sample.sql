-- The sample table of docker-compose.yml: 100,000 orders, the same on every machine.
CREATE TYPE order_state AS ENUM ('new', 'paid', 'shipped', 'returned');

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL,
    state order_state NOT NULL,
    amount numeric(12, 2) NOT NULL,
    discount double precision,
    gift boolean NOT NULL,
    reference uuid NOT NULL,
    note text,
    tags text[] NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE orders IS 'Orders of a made-up shop';
COMMENT ON COLUMN orders.amount IS 'In euros, with tax';

INSERT INTO orders (customer_id, state, amount, discount, gift, reference, note, tags, created_at)
SELECT
    1 + n * 7919 % 5000,
    (enum_range(NULL::order_state))[1 + n % 4],
    (n * 104729 % 1000000) / 100.0,
    CASE WHEN n % 5 > 0 THEN (n % 30) / 100.0 END,
    n % 17 = 0,
    md5(n::text)::uuid,
    CASE WHEN n % 3 = 0 THEN 'Please ring twice, order ' || n END,
    CASE WHEN n % 2 = 0 THEN ARRAY['web', 'kw' || n % 53] ELSE ARRAY[]::text[] END,
    timestamptz '2025-01-01 00:00:00+00' + n * interval '5 minutes'
FROM generate_series(1::bigint, 100000) AS n;
