-- 1,000 orders with ids from 1 up, into an empty table only. A trading name for every id: 20 colours
-- and 50 trades give 1,000 different ones.
INSERT INTO orders (customer_name, status)
SELECT color || ' ' || trade, (ARRAY['pending', 'paid', 'shipped'])[1 + (n - 1) % 3]
FROM generate_series(1, 1000) AS n,
LATERAL (SELECT
  (string_to_array('Amber,Azure,Black,Blue,Bronze,Coral,Crimson,Golden,Green,Grey,Indigo,Ivory,'
    'Jade,Lilac,Olive,Red,Silver,Teal,Violet,White', ','))[1 + (n - 1) % 20] AS color,
  (string_to_array('Bakery,Bicycles,Books,Bottles,Boxes,Brushes,Buttons,Cables,Candles,Canvas,'
    'Ceramics,Chairs,Clocks,Coffee,Compasses,Copper,Cork,Desks,Drums,Fabrics,Flutes,Frames,'
    'Gardens,Glass,Hats,Hinges,Kettles,Kites,Ladders,Lamps,Leather,Lenses,Maps,Mirrors,Nails,'
    'Oars,Paints,Paper,Pianos,Prints,Ropes,Sails,Seeds,Shoes,Soap,Spices,Tiles,Tools,Toys,Wool',
    ','))[1 + (n - 1) / 20] AS trade) AS name
WHERE NOT EXISTS (SELECT FROM orders)
ORDER BY n;
